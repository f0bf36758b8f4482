"""Dead letters: why something was given up, and giving it to its handler again."""

import json

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Context, EventModel, Retry, Scope
from trine.errors import InternalError, NotFoundError
from trine.jobs import deadletters
from trine.jobs.deadletters import Letter
from trine.leases import Lease
from trine_triggers import Event, Key, Queue

pytestmark = pytest.mark.anyio


class Told(EventModel, type="news.told", key="n"):
    n: int


class Note(BaseModel):
    n: int


notes: Scope[Note] = Scope("notes", Note)
recorded: Scope[Note] = Scope("recorded", Note, changes=True)


async def letters(client, count: int, **where: str) -> list[Letter]:
    """Wait until there are *count* dead letters, and return them."""
    with anyio.fail_after(10):
        while len(found := await deadletters.ls(client, **where)) != count:
            await anyio.sleep(0.02)
    return found


def shop(mended: list[bool], runs: list[int]) -> App:
    app = App("shop")

    @app.on(Queue("orders"))
    @app.function("shop.order", retry=Retry(attempts=2, delay_seconds=0.01))
    async def order(ctx: Context, n: int) -> int:
        runs.append(ctx.attempt)
        if not mended:
            raise RuntimeError("no stock")
        return n

    return app


async def test_a_letter_keeps_what_it_was_and_why_it_died(serve):
    runs: list[int] = []
    async with serve(shop([], runs)) as client:
        job = await client.enqueue("orders", {"n": 7}, id="seven")
        with pytest.raises(InternalError):
            await job.result(10)
        [letter] = await letters(client, 1, queue="orders")
        assert (letter.queue, letter.job, letter.attempts) == ("orders", "orders/seven", 2)
        assert (letter.code, letter.reason) == ("internal", "no stock")
        assert json.loads(letter.payload) == {"n": 7}
        assert await deadletters.show(client, letter.id) == letter
        assert await deadletters.ls(client, queue="others") == []
        with pytest.raises(NotFoundError):
            await deadletters.show(client, letter.id + 1)


async def test_a_redriven_job_keeps_its_id_and_counts_its_attempts_anew(serve):
    mended: list[bool] = []
    runs: list[int] = []
    async with serve(shop(mended, runs)) as client:
        job = await client.enqueue("orders", {"n": 7, "rest": "x" * 600_000}, id="seven")
        with pytest.raises(InternalError):
            await job.result(10)
        [letter] = await letters(client, 1)
        assert json.loads((await deadletters.show(client, letter.id)).payload)["n"] == 7
        assert await deadletters.redrive(client, letter.id) == 1
        with pytest.raises(InternalError):
            await job.result(10)  # not mended yet: the old failure is gone, this is a new one
        [letter] = await letters(client, 1)
        mended.append(True)
        assert await deadletters.redrive(client, queue="orders") == 1
        assert await job.result(10) == 7
        assert runs == [1, 2, 1, 2, 1]
        assert await letters(client, 0) == []
        with pytest.raises(NotFoundError):
            await deadletters.redrive(client, letter.id)


async def test_a_redrive_that_was_cut_off_doubles_nothing(serve):
    mended: list[bool] = []
    runs: list[int] = []
    async with serve(shop(mended, runs)) as client:
        job = await client.enqueue("orders", {"n": 7})
        with pytest.raises(InternalError):
            await job.result(10)
        [letter] = await letters(client, 1)
        names = client.bus.names
        [stored] = await client.bus.latest(names.dead, [names.dead_letter("*", "*")])
        mended.append(True)
        await deadletters.redrive(client, letter.id)
        assert await job.result(10) == 7
        kept = {k: v for k, v in stored.headers.items() if not k.startswith("Nats-")}
        await client.bus.store(stored.subject, stored.payload, kept)  # as if it was not deleted
        assert await deadletters.redrive(client) == 1
        assert await job.result(10) == 7
        assert await letters(client, 0) == []
        last = await client.enqueue("orders", {"n": 8})
        assert await last.result(10) == 8
        assert runs == [1, 2, 1, 1]


async def test_dropping_deletes_letters(serve):
    runs: list[int] = []
    async with serve(shop([], runs)) as client:
        for n in range(3):
            await client.enqueue("orders", {"n": n})
        first, *_ = await letters(client, 3)
        assert await deadletters.drop(client, first.id) == 1
        assert len(await letters(client, 2)) == 2
        assert await deadletters.drop(client, queue="orders") == 2
        assert await letters(client, 0) == []


async def test_a_redriven_event_reaches_only_the_function_that_failed(serve):
    app = App("news")
    mended: list[bool] = []
    heard: list[tuple[str, int, str]] = []
    done = anyio.Event()

    @app.on(Event("news.told"))
    @app.function("news.good")
    async def good(ctx: Context, told: Told) -> None:
        heard.append(("good", told.n, ctx.invocation.facts["type"]))

    @app.on(Event("news.told", where={"n": 1}))
    @app.function("news.bad", retry=Retry(attempts=1))
    async def bad(ctx: Context, told: Told) -> None:
        if not mended:
            raise RuntimeError("not yet")
        heard.append(("bad", told.n, ctx.invocation.facts["type"]))
        done.set()

    async with serve(app) as client:
        await client.emit(Told(n=1))
        [letter] = await letters(client, 1)
        assert letter.queue is None
        assert letter.consumer.startswith("news-bad")
        assert letter.headers["ce-type"] == "news.told"
        assert await deadletters.redrive(client, consumer=letter.consumer) == 1
        [letter] = await letters(client, 1)
        mended.append(True)
        assert await deadletters.redrive(client, letter.id) == 1
        with anyio.fail_after(10):
            await done.wait()
        assert await letters(client, 0) == []
    assert heard == [("good", 1, "news.told"), ("bad", 1, "news.told")]


@pytest.mark.parametrize("scope", [notes, recorded], ids=["latest", "recorded"])
async def test_a_redriven_change_shows_the_key_and_the_revision_that_it_had(serve, scope):
    app = App("news")
    mended: list[bool] = []
    seen: list[tuple[str, int, int]] = []
    done = anyio.Event()

    @app.on(Key(scope, "a.*", on=("put",)))
    @app.function("news.changed", retry=Retry(attempts=1))
    async def changed(key: str, new: Note, revision: int) -> None:
        seen.append((key, new.n, revision))
        if not mended:
            raise RuntimeError("not yet")
        done.set()

    async with serve(app) as client:
        await client.state(scope).put("a.b", Note(n=5))
        [letter] = await letters(client, 1)
        mended.append(True)
        await deadletters.redrive(client, letter.id)
        with anyio.fail_after(10):
            await done.wait()
    assert seen[0] == seen[1]
    assert seen[0][:2] == ("a.b", 5)


async def test_a_redriven_expiry_is_an_expiry_again(serve):
    app = App("news")
    mended: list[bool] = []
    seen: list[tuple[str, str]] = []
    done = anyio.Event()

    @app.on(Key("leases", "gpu.*", on=("expire",)))
    @app.function("news.lost", retry=Retry(attempts=1))
    async def lost(key: str, operation: str) -> None:
        seen.append((key, operation))
        if not mended:
            raise RuntimeError("not yet")
        done.set()

    async with serve(app) as client:
        assert await Lease(client.bus, "gpu.0", b"{}", 1).take()
        [letter] = await letters(client, 1)
        mended.append(True)
        await deadletters.redrive(client, letter.id)
        with anyio.fail_after(10):
            await done.wait()
    assert seen == [("gpu.0", "expire")] * 2


async def test_a_letter_whose_consumer_is_gone_stays(serve):
    app = App("news")

    @app.on(Event("news.told"))
    @app.function("news.bad", retry=Retry(attempts=1))
    async def bad(told: Told) -> None:
        raise RuntimeError("never")

    async with serve(App("empty")) as client:
        async with serve(app):
            await client.emit(Told(n=1))
            [letter] = await letters(client, 1)
        stream = client.bus.names.events
        await client.bus.api(f"CONSUMER.DELETE.{stream}.{letter.consumer}")
        with pytest.raises(NotFoundError, match="gone"):
            await deadletters.redrive(client, letter.id)
        assert len(await letters(client, 1)) == 1


async def test_what_cannot_be_decoded_is_dead_at_its_first_attempt(serve):
    runs: list[int] = []
    async with serve(shop([True], runs)) as client:
        for poison in (b"\xff\xfe", b"{", b'{"n": "x"}', b"[]", b"null"):
            await client.enqueue("orders", poison)
        found = await letters(client, 5)
        assert {letter.attempts for letter in found} == {1}
        assert {letter.code for letter in found} == {"invalid_input"}
        assert await (await client.enqueue("orders", {"n": 1})).result(10) == 1
        assert runs == [1]


async def test_the_command_lists_shows_redrives_and_drops(trine, serve):
    mended: list[bool] = []
    runs: list[int] = []
    async with serve(shop(mended, runs)) as client:
        job = await client.enqueue("orders", {"n": 7}, id="seven")
        await client.enqueue("orders", {"n": 8}, id="eight")
        first, _ = await letters(client, 2)
        code, out, _ = await trine.run("dlq", "ls")
        assert code == 0
        assert "orders/seven" in out
        assert "no stock" in out
        code, out, _ = await trine.run("dlq", "ls", "--queue", "orders", "--json")
        assert [row["payload"] for row in json.loads(out)] == [{"n": 7}, {"n": 8}]
        code, out, _ = await trine.run("dlq", "show", str(first.id))
        assert json.loads(out)["reason"] == "no stock"
        assert (await trine.run("dlq", "redrive"))[0] == 2
        assert (await trine.run("dlq", "show", "999"))[0] == 3
        mended.append(True)
        code, out, _ = await trine.run("dlq", "redrive", str(first.id))
        assert (code, out.strip()) == (0, "1 redriven")
        assert await job.result(10) == 7
        code, out, _ = await trine.run("dlq", "drop", "--all", "--json")
        assert json.loads(out) == {"dropped": 1}
        code, out, err = await trine.run("dlq", "ls")
        assert (code, out, "no dead letters" in err) == (0, "", True)
