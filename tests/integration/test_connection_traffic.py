"""One connection carries nats-py's own subscriptions, plain callbacks and requests side by side."""

import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from nats import errors as nats_errors
from nats.aio.msg import Msg

from trine.embedded import nats_server
from trine.errors import TooLargeError
from trine.transport.connection import Connection, connect

pytestmark = pytest.mark.anyio


async def echo_on(connection: Connection, subject: str) -> None:
    """Answer on *subject* with what was sent."""

    def answer(message: Msg) -> None:
        connection.send(message.reply, message.data, headers=message.headers)

    await connection.listen(subject, answer)


async def test_requests_callbacks_and_subscriptions_share_a_connection(nats, space):
    async with connect(nats) as connection, connect(nats) as other:
        await echo_on(other, f"{space}.echo")
        heard: list[bytes] = []
        handled: list[bytes] = []
        await connection.listen(f"{space}.plain", lambda message: heard.append(message.data))

        async def handle(message: Msg) -> None:
            await anyio.lowlevel.checkpoint()
            handled.append(message.data)

        await connection.subscribe(f"{space}.coroutine", cb=handle)
        queued = await connection.subscribe(f"{space}.queued")
        await connection.flush()
        answers: list[bytes] = []

        async def ask(n: int) -> None:
            reply = await connection.request(f"{space}.echo", b"%d" % n, 10, headers={"N": str(n)})
            assert reply.headers == {"N": str(n)}
            answers.append(reply.data)

        async with anyio.create_task_group() as tasks:
            for n in range(200):
                tasks.start_soon(ask, n)
                for kind in ("plain", "coroutine", "queued"):
                    other.send(f"{space}.{kind}", b"%d" % n)
        numbers = [b"%d" % n for n in range(200)]
        await other.flush()
        await connection.flush()
        assert sorted(answers, key=int) == numbers
        assert heard == numbers
        with anyio.fail_after(10):
            assert [(await queued.next_msg(5)).data for _ in numbers] == numbers
            while len(handled) < len(numbers):
                await anyio.lowlevel.checkpoint()
        assert handled == numbers


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000, 1_000_000])
async def test_payloads_of_any_size_and_content_arrive(nats, space, size):
    payload = (bytes(range(256)) + b"\r\nMSG a 1 2\r\n") * (size // 260 + 1)
    payload = payload[:size]
    async with connect(nats) as connection:
        await echo_on(connection, space)
        for headers in (None, {"Name": "välue"}):
            reply = await connection.request(space, payload, 10, headers=headers)
            assert reply.data == payload
            assert reply.headers == headers


async def test_headers_count_towards_the_limit_of_the_server(nats, space):
    async with connect(nats) as connection:
        limit = connection.max_payload
        with pytest.raises(TooLargeError):
            connection.send(space, b"x" * limit, headers={"A": "b"})
        await echo_on(connection, space)
        head = len(b"NATS/1.0\r\nA: b\r\n\r\n")
        reply = await connection.request(space, b"x" * (limit - head), 10, headers={"A": "b"})
        assert len(reply.data) == limit - head


async def test_nobody_there_is_said_at_once(nats, space):
    async with connect(nats) as connection:
        with anyio.fail_after(5), pytest.raises(nats_errors.NoRespondersError):
            await connection.request(space, b"", 60)


async def test_a_late_reply_and_a_cancelled_request_leave_nothing_behind(nats, space):
    async with connect(nats) as connection, connect(nats) as other:
        asked: list[str] = []
        await other.listen(space, lambda message: asked.append(message.reply))
        with pytest.raises(nats_errors.TimeoutError):
            await connection.request(space, b"", 0.01)
        with anyio.move_on_after(0.01):
            await connection.request(space, b"", 60)
        await other.flush()
        for reply in asked:
            other.send(reply, b"too late")
        await other.flush()
        await connection.flush()
        assert len(asked) == 2
        assert not connection._waiting
        assert not len(connection.deadlines)


async def test_a_callback_that_raises_stops_nobody(nats, space):
    async with connect(nats) as connection:
        heard: list[bytes] = []

        def fail(message: Msg) -> None:
            heard.append(message.data)
            raise ValueError("planted")

        await connection.listen(space, fail)
        for n in range(3):
            connection.send(space, b"%d" % n)
        await connection.flush()
        assert heard == [b"0", b"1", b"2"]


async def test_a_subscription_of_nats_py_keeps_its_limits(nats, space):
    async with connect(nats) as connection:
        limited = await connection.subscribe(space, pending_msgs_limit=10)
        for n in range(100):
            connection.send(space, b"%d" % n)
        await connection.flush()
        assert limited.pending_msgs == 10
        kept = [(await limited.next_msg(1)).data for _ in range(10)]
        assert kept == [b"%d" % n for n in range(10)]


async def test_draining_handles_what_has_arrived(nats, space):
    async with connect(nats) as other, connect(nats) as connection:
        handled: list[bytes] = []

        async def handle(message: Msg) -> None:
            await anyio.lowlevel.checkpoint()
            handled.append(message.data)

        await connection.subscribe(space, cb=handle)
        await connection.flush()
        for n in range(500):
            other.send(space, b"%d" % n)
        await other.flush()
        with anyio.fail_after(10):
            await connection.drain()
        assert handled == [b"%d" % n for n in range(500)]
        assert connection.is_closed


async def test_more_than_may_wait_for_a_slow_handler_is_not_read(nats, space):
    async with connect(nats) as connection, connect(nats) as other:
        go_on = anyio.Event()
        seen: list[int] = []
        reader = connection._reader
        assert reader is not None

        async def slow(size: int) -> None:
            await go_on.wait()
            seen.append(size)

        await connection.listen(space, lambda message: reader.later(len(message.data), slow, 1))
        for _ in range(64):
            other.send(space, b"x" * 500_000)
        await other._flush_pending(force_flush=True)
        with anyio.fail_after(10):
            while not reader._paused:
                await anyio.sleep(0.001)
            assert reader._line_bytes < 16_000_000
            go_on.set()
            while len(seen) < 64:
                await anyio.sleep(0.001)
        assert reader._line_bytes == 0
        assert not reader._paused


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost and its key."""
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"),
            *("-addext", names, "-out", files[0], "-keyout", files[1]),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return files


@pytest.mark.parametrize("scheme", ["nats", "tls"])
@pytest.mark.parametrize("first", [False, True])
async def test_a_server_with_tls_is_served_the_same_way(certificate, tmp_path, scheme, first):
    cert, key = certificate
    handshake = "handshake_first: true" if first else ""
    options = f'tls {{ cert_file: "{cert}", key_file: "{key}", {handshake} }}'
    context = ssl.create_default_context(cafile=str(cert))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(nats_server(tmp_path / "store", options=options))
        secure = f"{scheme}://{url.rpartition('/')[2]}"
        connection = await stack.enter_async_context(
            connect(secure, tls=context, tls_handshake_first=first)
        )
        await echo_on(connection, "echo")
        for size in (10, 500_000):
            reply = await connection.request("echo", b"s" * size, 10)
            assert reply.data == b"s" * size
        assert connection._reader.socket.get_extra_info("cipher") is not None
