"""What happens when the server can store no more."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from trine import Client, EventModel, Scope, streams
from trine.embedded import nats_server
from trine.errors import StorageFullError, TrineError

pytestmark = pytest.mark.anyio
LIMIT_MB = 4
PIECE = "x" * 100_000


class Done(EventModel, type="work.done"):
    text: str


values = Scope("values", str)


@asynccontextmanager
async def limited(store: Path) -> AsyncIterator[Client]:
    """Give a client of an embedded server that may store a few megabytes."""
    # The server takes the last of two blocks of one name.
    limits = f'store_dir: "{store.resolve()}", max_file_store: {LIMIT_MB}MB'
    async with (
        nats_server(store, "fast", options=f"jetstream {{ {limits} }}") as url,
        Client.connect(url, namespace="t") as client,
    ):
        await streams.ensure(client.bus)
        yield client


async def fill(client: Client) -> int:
    """Write until nothing more is taken; return how many pieces were acknowledged."""
    for written in range(1000):
        try:
            await client.state(values).put(f"k.{written}", PIECE)
        except TrineError:
            return written
    raise AssertionError("it is never full")


async def commit(client: Client) -> None:
    async with client.transaction() as tx:
        tx.put(values, "a", "1")
        tx.put(values, "b", "1")
        tx.emit(Done(text="of a transaction"))


WRITES: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "put": lambda client: client.state(values).put("more", PIECE),
    "send": lambda client: client.send("any.function", {"n": 1}),
    "enqueue": lambda client: client.enqueue("any", {"n": 1}),
    "emit": lambda client: client.emit(Done(text="more")),
    "transaction": commit,
    "object": lambda client: client.objects.put(PIECE.encode()),
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_full_store_refuses_and_says_what_to_do(tmp_path: Path, write: str) -> None:
    async with limited(tmp_path / "store") as client:
        await fill(client)
        with pytest.raises(StorageFullError, match="free disk space or raise its limit"):
            await WRITES[write](client)


async def test_a_full_store_keeps_what_it_has_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    names = []
    async with limited(tmp_path / "store") as client:
        store = client.state(values)
        written = await fill(client)
        assert written * len(PIECE) > 0.8 * LIMIT_MB * 2**20
        entries = {entry.key: entry.value for entry in await store.entries()}
        assert entries == {f"k.{n}": PIECE for n in range(written)}
        with pytest.raises(StorageFullError):
            await commit(client)
        assert await store.find("a") is None, "nothing of a refused transaction is stored"
        for n in range(10):
            names.append(client.bus.names.state("values", f"k.{n}"))
            purge = f"STREAM.PURGE.{client.bus.names.record}"
            await client.bus.api(purge, {"filter": names[-1]})
        await commit(client)
        await client.send("any.function", {"n": 1})
        await store.put("more", PIECE)
        assert (await store.get("a")).value == "1"
    async with limited(tmp_path / "store") as client:
        assert len(await client.state(values).entries()) == written - 10 + 3
