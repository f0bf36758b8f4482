"""The conformance suite, on every built-in trigger that runs beside its function."""

import itertools
import time
from typing import ClassVar

from pydantic import BaseModel

from trine import Client, EventModel, Scope
from trine.observability.observe import Completion
from trine.testing import TriggerConformance
from trine_triggers import (
    Cron,
    CronTick,
    Event,
    FileChange,
    Interval,
    IntervalTick,
    Key,
    KeyChange,
    Observe,
    Queue,
    Watch,
)

_numbers = itertools.count(1)


class Value(BaseModel):
    n: int


class Done(EventModel, type="conformance.done", key="n"):
    n: int


recorded = Scope("recorded", Value, changes=True)
plain = Scope("plain", Value)


class TestCron(TriggerConformance):
    payload_model = CronTick
    fires_by_itself = True

    def make(self) -> Cron:
        return Cron("* * * * * *")


class TestCronThatSkips(TestCron):
    def make(self) -> Cron:
        return Cron("@every 1s", overlap="skip")


class TestCronInParallel(TestCron):
    def make(self) -> Cron:
        return Cron("* * * * * *", overlap="parallel", jitter=0.2, zone="Asia/Kathmandu")


class TestEvent(TriggerConformance):
    payload_model = Done

    def make(self) -> Event:
        return Event("conformance.*", where={"n": {"gt": 0}})

    async def provoke(self, client: Client) -> None:
        await client.emit(Done(n=next(_numbers)))


class TestLiveEvent(TestEvent):
    def make(self) -> Event:
        return Event("conformance.done", durable=False)


class TestKeyWithChanges(TriggerConformance):
    payload_model = KeyChange
    scope: ClassVar[Scope[Value]] = recorded

    def make(self) -> Key:
        return Key(self.scope, "a.*")

    async def provoke(self, client: Client) -> None:
        await client.state(self.scope).put(f"a.{next(_numbers)}", Value(n=1))


class TestKeyOfAPlainScope(TestKeyWithChanges):
    scope = plain


class TestKeyCoalesced(TestKeyWithChanges):
    scope = plain

    def make(self) -> Key:
        return Key(self.scope, "a.*", coalesce=1)


class TestObserve(TriggerConformance):
    payload_model = Completion
    redelivers = False

    def make(self) -> Observe:
        return Observe("orders.place", on="success", max_fires=100, expires=3600.0)

    async def provoke(self, client: Client) -> None:
        completion = Completion(
            function="orders.place",
            invocation=f"i-{next(_numbers)}",
            worker="w",
            attempt=1,
            trigger=None,
            ok=True,
            started_at=time.time(),
            milliseconds=1.5,
        )
        subject = client.bus.names.done("orders.place")
        client.bus.connection.send(subject, completion.model_dump_json().encode())


class TestQueue(TriggerConformance):
    payload_model = Value

    def make(self) -> Queue:
        return Queue("conformance", ack_wait=5)

    async def provoke(self, client: Client) -> None:
        await client.enqueue("conformance", Value(n=1))


class TestInterval(TriggerConformance):
    payload_model = IntervalTick
    fires_by_itself = True

    def make(self) -> Interval:
        return Interval(0.2, at_once=True)


class TestWatch(TriggerConformance):
    payload_model = FileChange

    def make(self) -> Watch:
        return Watch(self.directory, "*.txt", poll_seconds=0.05)

    async def provoke(self, client: Client) -> None:
        (self.directory / f"{next(_numbers)}.txt").write_text("x")
