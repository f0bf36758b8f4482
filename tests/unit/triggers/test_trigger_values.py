"""Triggers as values: what they accept, and how they are named."""

from datetime import UTC, datetime

import pytest
from pydantic import BaseModel, ValidationError

from trine import App, Scope, trigger
from trine.errors import InvalidInputError, NotFoundError
from trine.trigger import Binding
from trine_triggers import Cron, Event, Http, Interval, Key, Observe, Queue, Watch

ALL = [
    Cron("@daily", payload={"a": 1}, overlap="skip", jitter=2.5, zone="Asia/Kathmandu"),
    Event("run.*", where={"ok": True, "loss": {"lt": 1.5, "exists": True}}),
    Event("run.*", start=datetime(2026, 11, 22, tzinfo=UTC)),
    Event("run.*", durable=False),
    Http("GET", "/a/{b}", timeout=3),
    Key("best", "a.*", on=("put",), changes=True, where={"old.n": 1}),
    Key("best", coalesce=1.5),
    Observe("a.run", on="error", max_fires=3, expires=datetime(2030, 1, 1, tzinfo=UTC)),
    Observe("a.run", expires=60.0, sample=0.25),
    Interval(0.5, at_once=True),
    Watch("inbox", "*.csv", on=("created",)),
    Queue("renders", concurrency=2),
]


def bound(one) -> Binding:
    async def run() -> None: ...

    return Binding(one, App("a").function("a.run")(run))


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.kind())
def test_a_trigger_survives_the_catalogue(one):
    info = bound(one).info()
    assert info.kind == type(one).__name__.lower()
    assert trigger.parse(info) == one


def test_every_kind_is_found_by_its_name():
    assert {one.kind() for one in ALL} <= set(trigger.kinds())
    with pytest.raises(NotFoundError, match="cron"):
        trigger.load("nothing")


def test_a_catalogue_entry_that_does_not_fit_is_invalid():
    info = bound(ALL[0]).info().model_copy(update={"config": {"expression": "x"}})
    with pytest.raises(InvalidInputError):
        trigger.parse(info)


def test_a_binding_has_one_id_for_one_setting():
    assert bound(Cron("@daily")).id == bound(Cron("@daily")).id
    assert bound(Cron("@daily")).id != bound(Cron("@hourly")).id


def test_a_key_trigger_knows_from_the_scope_whether_changes_are_recorded():
    class Best(BaseModel):
        n: int

    assert Key(Scope("best", Best, changes=True)).changes
    assert not Key(Scope("best", Best)).changes


@pytest.mark.parametrize(
    "make",
    [
        lambda: Http("GET", "no-slash"),
        lambda: Http("GET", "/a//b"),
        lambda: Http("GET", "/a/{B}"),
        lambda: Http("FETCH", "/a"),  # type: ignore[arg-type]
        lambda: Event("Run.Finished"),
        lambda: Event("run..x"),
        lambda: Queue("a.b"),
        lambda: Queue("a", concurrency=0),
        lambda: Queue("a", colour="red"),
        lambda: Key("best", "a..b"),
        lambda: Key("best", "a", on=("read",)),
    ],
)
def test_a_setting_that_means_nothing_is_refused_where_it_is_written(make):
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize("path", ["/", "/a", "/a/{b}/c", "/{a}", "/v1.0/x~y:z"])
def test_a_path_of_words_and_parameters_is_taken(path):
    assert Http("GET", path).path == path
