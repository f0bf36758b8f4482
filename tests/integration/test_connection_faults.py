"""What a connection does when the server goes away, misbehaves, refuses, or takes nothing more."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream
from nats import errors as nats_errors
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from trine.bus import Bus
from trine.embedded import nats_server
from trine.errors import TrineError, UnavailableError
from trine.transport.connection import Connection, connect
from trine.wire import Names

pytestmark = pytest.mark.anyio


class Between:
    """Stands between a client and the server: passes bytes on, and says what it is told to."""

    def __init__(self, url: str, cut: int) -> None:
        self.accepted = 0
        self._host, _, self._port = url.rpartition("/")[2].partition(":")
        self._cut = cut
        self._client: SocketStream | None = None

    async def say(self, data: bytes) -> None:
        """Say *data* to the client that came last, as if the server did."""
        assert self._client is not None
        await self._client.send(data)

    async def hang_up(self) -> None:
        assert self._client is not None
        await self._client.aclose()

    async def serve(self, client: SocketStream) -> None:
        self.accepted += 1
        self._client = client
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with (
                client,
                await anyio.connect_tcp(self._host, int(self._port)) as upstream,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._pump, client, upstream, 65536, tasks.cancel_scope)
                tasks.start_soon(self._pump, upstream, client, self._cut, tasks.cancel_scope)

    async def _pump(
        self, source: SocketStream, sink: SocketStream, size: int, scope: anyio.CancelScope
    ) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in source:
                for start in range(0, len(data), size):
                    await sink.send(data[start : start + size])
        scope.cancel()


@asynccontextmanager
async def between(nats: str, cut: int = 65536) -> AsyncIterator[tuple[Between, str]]:
    """Give a way to the server that passes on at most *cut* of its bytes at a time, and its URL."""
    one = Between(nats, cut)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, one.serve)
        yield one, f"nats://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


def told(callbacks: set[Callable[[], None]]) -> anyio.Event:
    event = anyio.Event()
    callbacks.add(event.set)
    return event


async def echo_on(connection: Connection, subject: str) -> None:
    await connection.listen(subject, lambda message: connection.send(message.reply, message.data))


async def test_everything_goes_on_after_a_kill_and_a_restart(own_server):
    async with connect(own_server.url) as connection, connect(own_server.url) as other:
        back, other_back = told(connection.on_reconnect), told(other.on_reconnect)
        heard: list[bytes] = []
        await connection.listen("plain", lambda message: heard.append(message.data))
        queued = await connection.subscribe("queued")
        await echo_on(other, "echo")
        stream = connection.jetstream()
        await stream.add_stream(name="S", subjects=["s.>"])
        pull = await stream.pull_subscribe("s.>", "durable", config=ConsumerConfig(ack_wait=1))
        await stream.publish("s.1", b"stored")
        [stored] = await pull.fetch(1, timeout=5)
        await stored.ack_sync(5)
        assert (await connection.request("echo", b"before", 5)).data == b"before"
        own_server.kill()
        with anyio.fail_after(20):
            while connection.is_connected:
                await anyio.sleep(0.001)
            for n in range(10):
                connection.send("plain", b"%d" % n)  # waits for the server
                connection.send("queued", b"%d" % n)
            own_server.start()
            await back.wait()
            await other_back.wait()
            await connection.flush()
            assert heard == [b"%d" % n for n in range(10)]
            assert [(await queued.next_msg(5)).data for _ in range(10)] == heard
            assert (await connection.request("echo", b"after", 5)).data == b"after"
            await stream.publish("s.2", b"more")
            while stored.subject != "s.2":  # the server may have forgotten the acknowledgement
                with suppress(nats_errors.TimeoutError):
                    [stored] = await pull.fetch(1, timeout=1)
                    await stored.ack_sync(5)
            assert stored.data == b"more"
            assert connection.stats["reconnects"] == 1


async def test_calls_during_restarts_succeed_or_say_that_the_server_is_away(own_server):
    async with connect(own_server.url) as connection, connect(own_server.url) as other:
        await echo_on(other, "echo")
        bus = Bus(connection, Names("t"))
        outcomes: list[bytes | None] = []
        stopping = False

        async def ask(n: int) -> None:
            while not stopping:
                try:
                    reply = await bus.request("echo", b"%d" % n, timeout=0.3)
                    assert reply.data == b"%d" % n
                    outcomes.append(reply.data)
                except UnavailableError:
                    outcomes.append(None)
                    await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(ask, n)
            for _ in range(3):
                with anyio.fail_after(20):
                    own_server.kill()
                    while connection.is_connected:
                        await anyio.sleep(0.001)
                    own_server.start()
                    before = sum(one is not None for one in outcomes)
                    while sum(one is not None for one in outcomes) < before + 100:
                        await anyio.sleep(0.01)
            stopping = True
        assert not connection._waiting


async def test_what_comes_byte_by_byte_is_understood(nats, space):
    async with between(nats, cut=1) as (_, url), connect(url) as connection:
        await echo_on(connection, space)
        for n in range(20):
            headers = {"N": str(n)} if n % 2 else None
            reply = await connection.request(space, b"\r\n%d\r\n" % n, 10, headers=headers)
            assert reply.data == b"\r\n%d\r\n" % n


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff\r\n", b"MSG a\r\n", b"MSG a 1 99999999999\r\n", b"z" * 70_000]
)
async def test_garbage_is_answered_with_a_new_connection(nats, space, garbage):
    async with between(nats) as (way, url), connect(url) as connection:
        await echo_on(connection, space)
        back = told(connection.on_reconnect)
        await way.say(garbage)
        with anyio.fail_after(10):
            await back.wait()
            assert way.accepted == 2
            assert (await connection.request(space, b"x", 5)).data == b"x"


async def test_a_message_that_was_cut_off_is_not_joined_to_what_follows(nats, space):
    async with between(nats) as (way, url), connect(url) as connection:
        heard: list[Msg] = []
        listener = await connection.listen(space, heard.append)
        sid = listener._subscription._id
        back = told(connection.on_reconnect)
        await way.say(b"MSG %s %d 100\r\nonly the beginning" % (space.encode(), sid))
        await way.hang_up()
        with anyio.fail_after(10):
            await back.wait()
        connection.send(space, b"whole")
        await connection.flush()
        assert [message.data for message in heard] == [b"whole"]


async def test_a_refused_subject_is_no_reason_to_leave(tmp_path):
    user = 'user: u, password: p, permissions { publish: "ok.>" }'
    options = f"authorization {{ users [ {{ {user} }} ] }}"
    async with (
        nats_server(tmp_path / "store", options=options) as url,
        connect(url.replace("//", "//u:p@")) as connection,
    ):
        closed = told(connection.on_closed)
        connection.send("forbidden", b"")
        await connection.flush()
        await connection.flush()
        assert "permissions violation" in str(connection.last_error).lower()
        assert connection.is_connected
        assert not closed.is_set()


async def test_an_end_for_good_is_told_and_ends_what_waits(nats, space):
    async with connect(nats) as connection, connect(nats) as other:
        closed = told(connection.on_closed)
        await other.listen(space, lambda _: None)  # never answers
        bus = Bus(connection, Names(space))
        failed = anyio.Event()

        async def wait_long() -> None:
            with pytest.raises(UnavailableError):
                await bus.request(space, timeout=60)
            failed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_long)
            await anyio.lowlevel.checkpoint()
            await connection.flush()
            connection._max_payload *= 4  # the server does not agree
            connection.send(space, b"x" * (connection._max_payload // 2))
            with anyio.fail_after(10):
                await closed.wait()
                await failed.wait()
        assert connection.is_closed
        assert "maximum payload" in str(connection.last_error).lower()
        with pytest.raises(UnavailableError):
            connection.send(space, b"")


async def test_an_owner_who_closes_is_not_told_that_it_ended(nats):
    async with connect(nats) as connection:
        closed = told(connection.on_closed)
    assert connection.is_closed
    assert not closed.is_set()


async def test_a_server_that_takes_nothing_fills_a_buffer_and_gets_all_of_it_later(own_server):
    async with connect(own_server.url) as connection, connect(own_server.url) as other:
        heard: list[int] = []
        await other.listen("big", lambda message: heard.append(int(message.data[:8])))
        sent = 0
        own_server.process.send_signal(signal.SIGSTOP)
        try:
            with anyio.fail_after(20):
                while connection.pending_data_size <= 64 * 1024 * 1024:
                    connection.send("big", b"%08d" % sent + b"x" * 500_000)
                    sent += 1
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(UnavailableError, match="takes nothing more"):
                    connection.send("big", b"one too many")
            assert sent * 500_000 < 80_000_000
        finally:
            own_server.process.send_signal(signal.SIGCONT)
        with anyio.fail_after(30):
            await connection.flush(timeout=20)
            while len(heard) < sent:
                await anyio.sleep(0.01)
        assert heard == list(range(sent))


async def test_a_server_that_hangs_is_left_for_another_though_it_took_not_all(
    own_server, nats, space
):
    both = f"{own_server.url},{nats}"
    options = {"dont_randomize": True, "ping_interval": 0.2, "max_outstanding_pings": 2}
    async with connect(both, **options) as connection:
        assert connection.connected_url is not None
        assert connection.connected_url.port == own_server.port
        await echo_on(connection, space)
        own_server.process.send_signal(signal.SIGSTOP)
        try:
            with anyio.fail_after(20), suppress(TrineError):
                while True:
                    connection.send("big", b"x" * 500_000)
                    await anyio.lowlevel.checkpoint()
            with anyio.fail_after(20):
                while True:
                    with suppress(nats_errors.Error, TrineError):
                        assert (await connection.request(space, b"x", 0.5)).data == b"x"
                        break
                    await anyio.sleep(0.01)
            assert connection.connected_url.netloc == nats.rpartition("/")[2]
        finally:
            own_server.process.send_signal(signal.SIGCONT)


async def test_leaving_a_server_that_hangs_does_not_hang(own_server):
    with anyio.fail_after(15):
        async with connect(own_server.url) as connection:
            own_server.process.send_signal(signal.SIGSTOP)
            with suppress(UnavailableError):
                while True:
                    connection.send("big", b"x" * 500_000)
                    await anyio.lowlevel.checkpoint()
    assert connection.is_closed
    os.kill(own_server.process.pid, signal.SIGCONT)
