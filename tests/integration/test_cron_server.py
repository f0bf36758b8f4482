"""The pure arithmetic of cron against the server: when does it say that it fires next?"""

import itertools
import random
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import pytest

from trine_triggers.cron_expression import Calendar, last_fire, next_fire, parse

pytestmark = pytest.mark.anyio

# The server passes over a day whose midnight does not exist, and over an hour that begins twice.
MENDED = ("America/Santiago", "Australia/Lord_Howe")
EARLY = ("Pacific/Chatham",)  # where the server may fire an hour early as the clocks go back
ZONES = [
    *("Europe/Amsterdam", "America/New_York", "America/Santiago", "Australia/Sydney"),
    *("Australia/Lord_Howe", "Pacific/Auckland", "Africa/Casablanca", "Asia/Jerusalem"),
    *("America/St_Johns", "Asia/Kathmandu", "Europe/Lisbon", "Pacific/Chatham"),
]


def changes(zone: str, start: date) -> list[datetime]:
    """The changes of the clock in the 13 months from *start* on, as the clock shows before it."""
    found = []
    place = ZoneInfo(zone)
    moment = datetime(start.year, start.month, start.day, tzinfo=UTC)
    for _ in range(13 * 31 * 24 * 2):
        after = moment + timedelta(minutes=30)
        if moment.astimezone(place).utcoffset() != after.astimezone(place).utcoffset():
            found.append((after - timedelta(minutes=1)).astimezone(place) + timedelta(minutes=1))
        moment = after
    return found


def over_changes(zone: str, fires: datetime) -> list[str]:
    """Expressions that fire at *fires* and then, where the calendar lets them, over a change."""
    now = fires.astimezone(ZoneInfo(zone))
    found = []
    for change in changes(zone, now.date()):
        found += [
            f"{now.second} {now.minute} {now.hour},{hour}"
            f" {now.day},{change.day} {now.month},{change.month} *"
            for hour in (change.hour, (change.hour - 1) % 24)
        ]
    return found


def at_random(zone: str, fires: datetime, dice: random.Random) -> str:
    """An expression that fires at *fires*, among other times."""
    now = fires.astimezone(ZoneInfo(zone))

    def field(value: int, low: int, high: int) -> str:
        others = ",".join(str(dice.randint(low, high)) for _ in range(dice.randint(1, 2)))
        return dice.choice(["*", str(value), f"{others},{value}", f"{low}-{value}", f"{value}/7"])

    return " ".join(
        [
            str(now.second),
            field(now.minute, 0, 59),
            field(now.hour, 0, 23),
            field(now.day, 1, 31),
            field(now.month, 1, 12),
            field(now.isoweekday() % 7, 0, 6),
        ]
    )


async def test_the_server_says_the_same_next_time(serve):
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    async with serve() as client:
        bus, names = client.bus, client.bus.names
        fires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=6)
        asked = [(zone, text) for zone in ZONES for text in over_changes(zone, fires)]
        asked += [(zone, at_random(zone, fires, dice)) for zone in ZONES for _ in range(6)]
        for number, (zone, text) in enumerate(asked):
            target = names.relayed(names.event("schedule", f"n{number}", "tick"))
            headers = {
                "Nats-Schedule": text,
                "Nats-Schedule-Target": target,
                "Nats-Schedule-Time-Zone": zone,
            }
            await bus.store(names.schedule(f"n{number}"), b"", headers)
        with anyio.fail_after(30):
            made = {}
            while len(made) < len(asked):
                await anyio.sleep(0.1)
                found = await bus.latest(names.events, [names.event("schedule", "*", "*")])
                made = {stored.subject.split(".")[3]: stored for stored in found}
    assert datetime.now(UTC) >= fires
    over = 0
    for number, (zone, text) in enumerate(asked):
        one = parse(text)
        assert isinstance(one, Calendar)
        said = datetime.fromisoformat(made[f"n{number}"].headers["Nats-Schedule-Next"])
        ours = next_fire(one, zone, fires)
        if zone in MENDED and ours < said:
            continue  # a trigger makes up for it: see test_cron_trigger.py
        if zone in EARLY and last_fire(one, zone, said) < said:
            continue  # the expression does not mean that instant: the page on Cron says so
        assert ours == said, (zone, text)
        assert last_fire(one, zone, said - timedelta(seconds=1)) == fires, (zone, text)
        over += said.astimezone(ZoneInfo(zone)).utcoffset() != (
            fires.astimezone(ZoneInfo(zone)).utcoffset()
        )
    assert over or fires.day < 5  # some of them are on the other side of a change


async def test_the_server_refuses_no_expression_that_is_taken(serve):
    values = ["*", "?", "1", "1-3", "1,2", "*/5", "2/3", "1-5/2"]
    async with serve() as client:
        bus, names = client.bus, client.bus.names
        several = itertools.islice(itertools.product(values, repeat=6), 0, None, 9973)
        texts = [parse(" ".join(fields)).text for fields in several]
        texts += [parse(text).text for text in ("@every 1.5s", "@every 1h30m", "@weekly")]
        texts += [parse(text).text for text in ("0 0 0 29 2 *", "0 9 * jan-mar Mon-FRI")]
        for number, text in enumerate(texts):
            target = names.relayed(names.event("schedule", f"n{number}", "tick"))
            headers = {"Nats-Schedule": text, "Nats-Schedule-Target": target}
            await bus.store(names.schedule(f"n{number}"), b"", headers)  # raises when refused
    assert len(texts) > 25
