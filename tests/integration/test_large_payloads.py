"""Payloads that no single message can hold, over a real server."""

import hashlib

import pytest

from trine import App, payload
from trine.errors import NotFoundError, TooLargeError

pytestmark = pytest.mark.anyio

LARGE = 3_000_000


def big() -> App:
    app = App("big")

    @app.function()
    async def size(text: str) -> int:
        return len(text)

    @app.function()
    async def blow(n: int) -> str:
        return "x" * n

    @app.function()
    async def pieces(n: int):
        for _ in range(3):
            yield "y" * n

    return app


async def stored(client) -> int:
    info = await client.bus.api(f"STREAM.INFO.OBJ_{client.bus.names.objects}")
    return int(info["state"]["messages"])


@pytest.mark.parametrize("size", [100, payload.INLINE_BYTES - 100, payload.INLINE_BYTES, LARGE])
async def test_input_and_output_of_any_size_pass_unnoticed(serve, size):
    async with serve(big()) as client:
        assert await client.call("big.size", {"text": "x" * size}) == size
        assert len(await client.call("big.blow", {"n": size})) == size


async def test_small_payloads_never_touch_the_store(serve):
    async with serve(big()) as client:
        assert await client.call("big.size", {"text": "x" * 500_000}) == 500_000
        assert await stored(client) == 0


async def test_large_items_of_a_stream_arrive_in_order(serve):
    async with serve(big()) as client:
        items = [item async for item in client.stream("big.pieces", {"n": LARGE})]
        assert [len(item) for item in items] == [LARGE] * 3


async def test_above_the_configured_limit_nothing_is_sent(serve):
    async with serve(big()) as client:
        client.bus.payload_limit = 1_000_000
        with pytest.raises(TooLargeError, match="1000000") as refused:
            await client.call("big.size", {"text": "x" * 1_000_001})
        assert refused.value.details["limit"] == 1_000_000
        assert await stored(client) == 0
        with pytest.raises(TooLargeError):  # the same process serves: its replies have the limit
            await client.call("big.blow", {"n": 1_000_001})


async def test_a_reference_to_nothing_is_an_error_and_not_a_hang(serve):
    async with serve(big()) as client:
        with pytest.raises(NotFoundError, match="no object"):
            await client.call_bytes("big.size", b"", headers={"Trine-Object": "tmp-none"})


async def test_what_a_call_stored_expires_by_itself(serve):
    async with serve(big()) as client:
        await client.call("big.size", {"text": "x" * LARGE})
        names = client.bus.names
        subject = (await client.bus.subjects(f"OBJ_{names.objects}", names.object_info("*")))[0]
        found = await client.bus.last(f"OBJ_{names.objects}", subject)
        assert found is not None
        assert found.headers["Nats-TTL"] == f"{payload.CALL_SECONDS}s"


async def test_objects_of_any_size_are_stored_once_and_read_as_written(serve):
    async with serve(big()) as client:
        for content in (b"", b"x", b"y" * 131_072, bytes(range(256)) * 40_000):
            digest = await client.objects.put(content)
            assert digest == hashlib.sha256(content).hexdigest()
            assert await client.objects.get(digest) == content
            assert await client.objects.size(digest) == len(content)
        before = await stored(client)
        assert await client.objects.put(content) == digest
        assert await stored(client) == before


async def test_a_stream_is_stored_under_the_hash_of_its_content(serve):
    async def pieces():
        for number in range(50):
            yield bytes([number]) * 100_000

    whole = b"".join(bytes([number]) * 100_000 for number in range(50))
    async with serve(big()) as client:
        digest = await client.objects.put_stream(pieces())
        assert digest == hashlib.sha256(whole).hexdigest()
        before = await stored(client)
        assert await client.objects.put_stream(pieces()) == digest
        assert await stored(client) == before  # the second copy is gone
        read = b"".join([piece async for piece in client.objects.get_stream(digest)])
        assert read == whole


async def test_an_upload_that_breaks_off_leaves_nothing(serve):
    async def broken():
        yield b"x" * 1_000_000
        raise OSError("the client went away")

    async with serve(big()) as client:
        with pytest.raises(OSError, match="went away"):
            await client.objects.put_stream(broken())
        assert await stored(client) == 0


async def test_a_deleted_object_is_gone(serve):
    async with serve(big()) as client:
        digest = await client.objects.put(b"z" * 300_000)
        await client.objects.delete(digest)
        await client.objects.delete(digest)
        assert await stored(client) == 0
        with pytest.raises(NotFoundError):
            await client.objects.get(digest)
        assert await client.objects.put(b"z" * 300_000) == digest
