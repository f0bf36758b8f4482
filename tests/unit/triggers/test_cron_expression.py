"""Cron expressions: what is taken, what is refused, and which instants they mean over DST."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trine_triggers import Cron
from trine_triggers.cron_expression import Calendar, Every, last_fire, next_fire, parse

ZONES = [
    "UTC",
    "Europe/Amsterdam",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "Africa/Cairo",  # midnight does not exist on the day when clocks go forward
    "America/Havana",  # midnight comes twice
    "Asia/Kathmandu",
    "Pacific/Apia",  # 30 December 2011 does not exist
]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda two: f"{min(two)}-{max(two)}")
    part = st.one_of(
        st.just("*"),
        number.map(str),
        span,
        st.tuples(st.just("*") | span, st.integers(1, 30)).map(lambda two: f"{two[0]}/{two[1]}"),
    )
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=3).map(",".join))


expressions = st.tuples(
    field(0, 59), field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)
).map(" ".join)
moments = st.datetimes(datetime(2010, 1, 1), datetime(2030, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(tzinfo=UTC)
)


def calendar(text: str) -> Calendar:
    parsed = parse(text)
    assert isinstance(parsed, Calendar)
    return parsed


def fires(text: str, zone: str | None, start: str, count: int) -> list[str]:
    """The next *count* times after *start*, on the clocks of the zone."""
    moment = datetime.fromisoformat(start).astimezone(UTC)
    found = []
    for _ in range(count):
        moment = next_fire(calendar(text), zone, moment)
        found.append(moment.astimezone(ZoneInfo(zone or "UTC")).isoformat())
    return found


def means(one: Calendar, wall: datetime) -> bool:
    """The rule, spelled out for one moment of a clock."""
    in_month = wall.day in one.day.values
    in_week = wall.isoweekday() % 7 in one.weekday.values
    both = one.day.any or one.weekday.any
    return (
        wall.second in one.second.values
        and wall.minute in one.minute.values
        and wall.hour in one.hour.values
        and wall.month in one.month.values
        and (in_month and in_week if both else in_month or in_week)
    )


@given(expressions, st.sampled_from(ZONES), moments)
def test_the_next_time_is_one_that_is_meant_and_comes_later(text, zone, after):
    one = calendar(text)
    found = next_fire(one, zone, after)
    assert found > after
    assert means(one, found.astimezone(ZoneInfo(zone)))


@given(expressions, st.sampled_from(ZONES), moments)
def test_the_last_time_is_the_one_before_the_next(text, zone, moment):
    one = calendar(text)
    following = next_fire(one, zone, moment)
    assert last_fire(one, zone, following) == following
    earlier = last_fire(one, zone, following - timedelta(seconds=1))
    assert earlier <= moment
    assert next_fire(one, zone, earlier) == following


@settings(max_examples=60)
@given(
    expressions.map(lambda text: "0 " + text.split(" ", 1)[1]),
    st.sampled_from(ZONES),
    st.sampled_from(["2026-03-29", "2026-10-25", "2026-11-01", "2027-03-14", "2026-04-23"]),
    st.integers(0, 2000),
)
def test_no_time_is_passed_over_within_two_days(text, zone, day, minutes):
    """Against the rule, minute by minute; only a repeated time may be left out."""
    one = calendar(text)
    start = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(minutes=minutes)
    limit = start + timedelta(days=1)
    seen = set()
    expected = []
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(days=1)
    while moment <= limit:
        wall = moment.astimezone(ZoneInfo(zone))
        if means(one, wall):
            name = wall.replace(tzinfo=None)
            if (one.hour.any or name not in seen) and moment > start:
                expected.append(moment)
            seen.add(name)
        moment += timedelta(minutes=1)
    found = []
    moment = start
    while (moment := next_fire(one, zone, moment)) <= limit:
        found.append(moment)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "zone", "start", "expected"),
    [
        (  # forward: 02:30 does not exist on the 29th
            "0 30 2 * * *",
            "Europe/Amsterdam",
            "2026-03-28T00:00:00+01:00",
            ["2026-03-28T02:30:00+01:00", "2026-03-30T02:30:00+02:00"],
        ),
        (  # back: 02:30 comes twice on the 25th, and is one moment of the day
            "0 30 2 * * *",
            "Europe/Amsterdam",
            "2026-10-25T00:00:00+02:00",
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        (  # back: every hour is every hour that passes
            "0 30 * * * *",
            "Europe/Amsterdam",
            "2026-10-25T01:45:00+02:00",
            [
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:30:00+01:00",
            ],
        ),
        (  # forward: no half hour is counted twice
            "0 */30 * * * *",
            "America/New_York",
            "2026-03-08T01:15:00-05:00",
            ["2026-03-08T01:30:00-05:00", "2026-03-08T03:00:00-04:00"],
        ),
        (  # a clock that moves by half an hour
            "0 45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T12:00:00+11:00",
            ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"],
        ),
        (  # a midnight that does not exist
            "@daily",
            "Africa/Cairo",
            "2026-04-22T12:00:00+02:00",
            ["2026-04-23T00:00:00+02:00", "2026-04-25T00:00:00+03:00"],
        ),
        (  # a first of the month after such a midnight
            "@monthly",
            "Africa/Cairo",
            "2026-04-22T12:00:00+02:00",
            ["2026-05-01T00:00:00+03:00"],
        ),
        (  # a day that does not exist
            "@daily",
            "Pacific/Apia",
            "2011-12-29T12:00:00-10:00",
            ["2011-12-31T00:00:00+14:00"],
        ),
        (  # a leap day, over 1900 and its like
            "0 0 0 29 2 *",
            None,
            "2096-03-01T00:00:00+00:00",
            ["2104-02-29T00:00:00+00:00"],
        ),
        (  # day of the month or of the week
            "0 0 12 13 * FRI",
            None,
            "2026-11-10T00:00:00+00:00",
            ["2026-11-13T12:00:00+00:00", "2026-11-20T12:00:00+00:00"],
        ),
    ],
)
def test_times_over_changes_of_the_clock(text, zone, start, expected):
    assert fires(text, zone, start, len(expected)) == expected


def test_the_server_fires_twice_in_an_hour_that_repeats():
    one = calendar("0 30 2 * * *")
    second = datetime.fromisoformat("2026-10-25T02:30:00+01:00")
    zone = "Europe/Amsterdam"
    assert last_fire(one, zone, second, repeats=True) == second
    assert last_fire(one, zone, second) == second - timedelta(hours=1)


@given(
    st.lists(st.sampled_from(["*", "0", "5", "*/10", "1,2,3", "1-5", "?"]), min_size=6, max_size=6)
)
def test_six_fields_are_left_as_they_are(fields):
    fields = [
        text.replace("0", "1") if at in (3, 4) and text == "0" else text
        for at, text in enumerate(fields)
    ]
    text = " ".join(fields)
    assert parse(text).text == text
    assert parse(f"  {'   '.join(fields)} ").text == text


def test_five_fields_run_at_second_zero():
    assert parse("*/5 9-17 * * MON-FRI").text == "0 */5 9-17 * * MON-FRI"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("@daily", "0 0 0 * * *"),
        ("@midnight", "0 0 0 * * *"),
        ("@hourly", "0 0 * * * *"),
        ("@weekly", "0 0 0 * * 0"),
        ("@monthly", "0 0 0 1 * *"),
        ("@yearly", "0 0 0 1 1 *"),
    ],
)
def test_names_are_spelled_out(name, expected):
    assert parse(name).text == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("@every 1s", 1), ("@every 1m30s", 90), ("@every 1.5s", 1.5), ("@every 24h", 86400)],
)
def test_a_period_is_left_as_it_is(text, seconds):
    assert parse(text) == Every(text, seconds)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("99 * * * * *", "second: 99 is not in 0-59"),
        ("0 60 * * * *", "minute: 60 is not in 0-59"),
        ("0 0 24 * * *", "hour: 24 is not in 0-23"),
        ("0 0 0 0 * *", "day of the month: 0 is not in 1-31"),
        ("0 0 0 * 13 *", "month: 13 is not in 1-12"),
        ("0 0 0 * * 7", "Sunday is 0 or SUN"),
        ("0 0 0 L * *", "day of the month: 'L'"),
        ("0 0 0 * * 5#2", "day of the week: '5#2'"),
        ("0 0 0 * * MON-", "day of the week: ''"),
        ("0 30-10 * * * *", "runs backwards"),
        ("0 */0 * * * *", "the step '0'"),
        ("0 1,,2 * * * *", "minute: ''"),
        ("0 *-5 * * * *", "minute: '*'"),
        ("0 ٣ * * * *", "minute: '٣'"),
        ("0 0 0 31 2 *", "no month of '2' has a day '31'"),
        ("0 0 0 31 2,4 *", "no month"),
        ("", "6 fields"),
        ("* * * *", "6 fields"),
        ("* * * * * * *", "6 fields"),
        ("@reboot", "6 fields"),
        ("CRON_TZ=UTC * * * * *", "second"),
        ("@every", "@every takes"),
        ("@every 5", "@every takes"),
        ("@every 500ms", "@every takes"),
        ("@every 0s", "@every takes"),
        ("@every 999999h", "@every takes"),
    ],
)
def test_what_is_no_expression_is_refused_where_it_is_written(text, reason):
    with pytest.raises(ValidationError) as refused:
        Cron(text)
    assert reason in str(refused.value)


@given(st.text(max_size=40))
def test_any_text_is_an_expression_or_a_value_error(text):
    try:
        parsed = parse(text)
    except ValueError:
        return
    if isinstance(parsed, Calendar):
        next_fire(parsed, None, datetime(2026, 1, 1, tzinfo=UTC))


def test_an_unknown_zone_is_refused_where_it_is_written():
    with pytest.raises(ValidationError, match="zone"):
        Cron("@daily", zone="Mars/Olympus")
    assert Cron("@daily", zone="Europe/Amsterdam").zone == "Europe/Amsterdam"


def test_a_period_has_no_zone():
    with pytest.raises(ValidationError, match="zone"):
        Cron("@every 90s", zone="Europe/Amsterdam")
