"""Cron arithmetic: which instants an expression means in a zone; pure, without clock or server."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_NAMED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_EVERY = re.compile(r"@every ((\d{1,9}(\.\d{1,9})?(ms|s|m|h))+)", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_NUMBER = re.compile(r"\d{1,4}", re.ASCII)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_YEAR_SECONDS = 366 * 24 * 3600.0
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_SEARCH_DAYS = 9 * 366  # the longest wait for a 29 February, over 2100
_DAY = 24 * 3600
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Field:
    """The values that one field of an expression allows."""

    values: tuple[int, ...]
    any: bool  # written as * or ?, which for the two fields of days means: ask the other one


@dataclass(frozen=True, slots=True)
class Calendar:
    """Six fields of a cron expression, as the server reads them.

    A day matches when the day of the month and the day of the week do, or either of them where
    neither is ``*``. Clocks that are put forward skip what falls into the gap. Clocks that are
    put back run a time twice only where every hour is meant: 01:30 is one moment of the day.
    """

    text: str
    second: Field
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    def on(self, day: date) -> bool:
        """Whether *day* matches."""
        if day.month not in self.month.values:
            return False
        in_month = day.day in self.day.values
        in_week = day.isoweekday() % 7 in self.weekday.values
        if self.day.any or self.weekday.any:
            return in_month and in_week
        return in_month or in_week

    def from_second(self, second: int) -> int | None:
        """Return the first matching second of the day that is not before *second*."""
        hour, minute = second // 3600, second // 60 % 60
        for h in self.hour.values[bisect_left(self.hour.values, hour) :]:
            minutes = self.minute.values
            for m in minutes[bisect_left(minutes, minute if h == hour else 0) :]:
                low = second % 60 if (h, m) == (hour, minute) else 0
                at = bisect_left(self.second.values, low)
                if at < len(self.second.values):
                    return h * 3600 + m * 60 + self.second.values[at]
        return None

    def to_second(self, second: int) -> int | None:
        """Return the last matching second of the day that is not after *second*."""
        hour, minute = second // 3600, second // 60 % 60
        for h in reversed(self.hour.values[: bisect_right(self.hour.values, hour)]):
            minutes = self.minute.values
            for m in reversed(minutes[: bisect_right(minutes, minute if h == hour else 59)]):
                high = second % 60 if (h, m) == (hour, minute) else 59
                at = bisect_right(self.second.values, high)
                if at:
                    return h * 3600 + m * 60 + self.second.values[at - 1]
        return None


@dataclass(frozen=True, slots=True)
class Every:
    """``@every 90s``: a period, counted from when the schedule was made."""

    text: str
    seconds: float


def parse(expression: str) -> Calendar | Every:
    """Return what *expression* means; `ValueError` says which field is wrong, and why.

    Six fields (second, minute, hour, day, month, weekday), five (second 0), ``@every 1m30s``, or
    ``@daily`` and its like. What the server does not know is refused: 7 for Sunday, ``L``, ``#``.
    """
    text = " ".join(expression.split())
    text = _NAMED.get(text, text)
    if text.startswith("@every"):
        parts = _PART.findall(text) if _EVERY.fullmatch(text) else []
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
        if not 1 <= seconds <= _YEAR_SECONDS:
            raise ValueError("@every takes 1 s to 366 days, such as @every 90s or @every 1m30s")
        return Every(text, seconds)
    words = text.split(" ")
    if len(words) == 5:
        words.insert(0, "0")
    if len(words) != 6:
        raise ValueError(
            "a cron expression has 6 fields (the first is the second), 5 (from the minute on), or"
            " is @every 90s, @hourly, @daily, @weekly, @monthly or @yearly"
        )
    calendar = Calendar(
        " ".join(words),
        _field("second", words[0], 0, 59),
        _field("minute", words[1], 0, 59),
        _field("hour", words[2], 0, 23),
        _field("day of the month", words[3], 1, 31),
        _field("month", words[4], 1, 12, _MONTHS),
        _field("day of the week", words[5], 0, 6, _WEEKDAYS),
    )
    dated = calendar.weekday.any and not calendar.day.any
    if dated and all(
        calendar.day.values[0] > _LONGEST[month - 1] for month in calendar.month.values
    ):
        raise ValueError(f"no month of {words[4]!r} has a day {words[3]!r}")
    return calendar


def _field(what: str, text: str, low: int, high: int, names: tuple[str, ...] = ()) -> Field:
    values: set[int] = set()
    any_value = False
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        if span in ("*", "?"):
            start, end = low, high
        else:
            start = _value(what, first, low, high, names)
            end = _value(what, last, low, high, names) if dash else start
            if slash and not dash:
                end = high  # 5/10 means 5-59/10
        step = _step(what, step_text) if slash else 1
        if start > end:
            raise ValueError(f"{what}: {span!r} runs backwards")
        any_value |= span in ("*", "?") and step == 1
        values.update(range(start, end + 1, step))
    return Field(tuple(sorted(values)), any_value)


def _value(what: str, text: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + low
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{what}: {text[:32]!r} is not a number, a range, a list or *")
    if not low <= int(text) <= high:
        sunday = "; Sunday is 0 or SUN" if names is _WEEKDAYS and int(text) == 7 else ""
        raise ValueError(f"{what}: {text} is not in {low}-{high}{sunday}")
    return int(text)


def _step(what: str, text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) == 0:
        raise ValueError(f"{what}: the step {text[:32]!r} is not a number above 0")
    return int(text)


def next_fire(calendar: Calendar, zone: str | None, after: datetime) -> datetime:
    """Return the first instant after *after*, in UTC; `ValueError` when there is none."""
    start = int(after.timestamp() // 1) + 1
    for day in _days(start, zone, 1):
        if calendar.on(day):
            for low, high, offset in _stretches(day, zone, calendar.hour.any):
                found = calendar.from_second(max(low, _wall(start, offset, day)))
                if found is not None and found < high:
                    return _instant(day, found, offset)
    raise ValueError(f"{calendar.text} has no next time")


def last_fire(
    calendar: Calendar, zone: str | None, until: datetime, *, repeats: bool = False
) -> datetime:
    """Return the last instant that is not after *until*, in UTC; `ValueError` when there is none.

    With *repeats* every time of an hour that comes twice counts twice: the server fires at both.
    """
    end = int(until.timestamp() // 1)
    for day in _days(end, zone, -1):
        if calendar.on(day):
            for low, high, offset in reversed(_stretches(day, zone, calendar.hour.any or repeats)):
                limit = min(high - 1, _wall(end, offset, day))
                found = calendar.to_second(limit) if limit >= low else None
                if found is not None and found >= low:
                    return _instant(day, found, offset)
    raise ValueError(f"{calendar.text} has no earlier time")


def _days(instant: int, zone: str | None, step: int) -> Iterator[date]:
    """The local days from that of *instant* on; one earlier, since clocks may go back over 0:00."""
    first = _EPOCH + (instant + _offset(instant, zone)) // _DAY - step
    for number in range(_SEARCH_DAYS):
        yield date.fromordinal(first + number * step)


def _wall(instant: int, offset: int, day: date) -> int:
    """Seconds from midnight of *day* on a clock at *offset*; below 0 and above a day elsewhere."""
    return instant + offset - (day.toordinal() - _EPOCH) * _DAY


def _instant(day: date, second: int, offset: int) -> datetime:
    epoch = (day.toordinal() - _EPOCH) * _DAY + second - offset
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)


@lru_cache(maxsize=4096)
def _stretches(day: date, zone: str | None, twice: bool) -> tuple[tuple[int, int, int], ...]:
    """The parts of a local day with one offset each: from second, to second, offset.

    Most days have one. Where clocks go forward the second starts after the end of the first; where
    they go back it overlaps it, unless *twice* is false.
    """
    midnight = (day.toordinal() - _EPOCH) * _DAY
    found: list[tuple[int, int, int]] = []
    reached = 0
    for start, end, offset in _offsets(midnight - _DAY, midnight + 2 * _DAY, zone):
        low = max(0 if twice else reached, start + offset - midnight)
        high = min(_DAY, end + offset - midnight)
        if low < high:
            found.append((low, high, offset))
            reached = max(reached, high)
    return tuple(found)


def _offsets(start: int, end: int, zone: str | None) -> Iterator[tuple[int, int, int]]:
    """The stretches of instants from *start* to *end* with one offset each."""
    begun, offset = start, _offset(start, zone)
    for probe in range(start + 3 * 3600, end + 1, 3 * 3600):
        if _offset(probe, zone) == offset:
            continue
        low, high = probe - 3 * 3600, probe
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
        yield begun, high, offset
        begun, offset = high, _offset(high, zone)
    yield begun, end, offset


def _offset(instant: int, zone: str | None) -> int:
    """Seconds by which the clocks of *zone* are ahead of UTC at *instant*."""
    if zone is None:
        return 0
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=instant)
    shift = moment.astimezone(ZoneInfo(zone)).utcoffset()
    return 0 if shift is None else round(shift.total_seconds())
