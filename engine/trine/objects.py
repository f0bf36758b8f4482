"""Big things: a store of objects by the SHA-256 of their content.

The layout is that of NATS object stores, so that ``nats object ls`` shows what is there. Reading
and writing are our own: nats-py reads a large object at a tenth of the speed (its issue 703).
"""

import asyncio
import base64
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterable
from datetime import UTC, datetime
from typing import Any

from trine import wire
from trine.bus import Bus
from trine.errors import InternalError, NotFoundError, WriteConflictError

CHUNK_BYTES = 128 * 1024
_IN_FLIGHT = 16  # chunks
_BATCH = 64  # chunks in one read: 8 MiB at most in memory
_TEMPORARY = "tmp-"


class Objects:
    """Content-addressed blobs: equal content is stored once; what is read is what was hashed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    # --- writing -------------------------------------------------------------------------------

    async def put(self, content: bytes) -> str:
        """Store *content* and return its hash, 64 hexadecimal digits."""
        digest = hashlib.sha256(content).hexdigest()
        if await self._info(digest) is not None:
            return digest

        async def once() -> AsyncGenerator[bytes, None]:
            yield content

        return await self.put_stream(once())

    async def put_stream(self, content: AsyncIterable[bytes]) -> str:
        """Store what *content* gives and return its hash; never more than 2 MiB are in memory."""
        upload = await self._upload(content, {})
        digest: str = upload["sha256"]
        try:
            await self._commit(digest, upload, {})
        except WriteConflictError:  # the same content is there already
            await self._purge(upload["nuid"])
        return digest

    async def put_temporary(self, content: bytes, seconds: float | None) -> str:
        """Store *content* under a name of its own, for *seconds*, and return the name."""

        async def once() -> AsyncGenerator[bytes, None]:
            yield content

        headers = {} if seconds is None else {wire.TTL: f"{max(1, round(seconds))}s"}
        name = f"{_TEMPORARY}{uuid.uuid4().hex}"
        await self._commit(name, await self._upload(once(), headers), headers)
        return name

    async def delete(self, name: str) -> None:
        """Delete the object; nothing happens when there is none."""
        found = await self._info(name)
        if found is None:
            return
        await self._bus.api(
            f"STREAM.PURGE.{self._stream}", {"filter": self._bus.names.object_info(_encoded(name))}
        )
        await self._purge(found["nuid"])

    async def _upload(
        self, content: AsyncIterable[bytes], headers: dict[str, str]
    ) -> dict[str, Any]:
        nuid = uuid.uuid4().hex
        subject = self._bus.names.object_chunk(nuid)
        digest, size, chunks = hashlib.sha256(), 0, 0
        places = asyncio.Semaphore(_IN_FLIGHT)
        waiting: set[asyncio.Future[int]] = set()

        async def store(chunk: bytes) -> None:
            # One task sends in order: the order of the chunks is that of the stream.
            await places.acquire()
            sent = asyncio.ensure_future(self._bus.store(subject, chunk, headers))
            sent.add_done_callback(lambda _: places.release())
            waiting.add(sent)
            await asyncio.sleep(0)  # it publishes before the next one starts

        try:
            async for piece in content:
                digest.update(piece)
                size += len(piece)
                for start in range(0, len(piece), CHUNK_BYTES):
                    chunk = piece[start : start + CHUNK_BYTES]
                    if chunks == 0:  # opens the inbox: the others follow in order
                        await self._bus.store(subject, chunk, headers)
                    else:
                        await store(chunk)
                    chunks += 1
                for done in [one for one in waiting if one.done()]:
                    waiting.discard(done)
                    done.result()
            await asyncio.gather(*waiting)
        except BaseException as error:
            await asyncio.gather(*waiting, return_exceptions=True)
            if isinstance(error, Exception):
                await self._purge(nuid)
            raise
        return {"nuid": nuid, "size": size, "chunks": chunks, "sha256": digest.hexdigest()}

    async def _commit(self, name: str, upload: dict[str, Any], headers: dict[str, str]) -> None:
        raw = bytes.fromhex(upload["sha256"])
        info = {
            "name": name,
            "bucket": self._bus.names.objects,
            "nuid": upload["nuid"],
            "size": upload["size"],
            "chunks": upload["chunks"],
            "mtime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "digest": f"SHA-256={base64.urlsafe_b64encode(raw).decode()}",
            "options": {"max_chunk_size": CHUNK_BYTES},
        }
        subject = self._bus.names.object_info(_encoded(name))
        found = await self._bus.last(self._stream, subject)
        if found is not None and not wire.loads(found.payload).get("deleted"):
            raise WriteConflictError(f"object {name} exists")
        expected = {wire.EXPECTED_SEQUENCE: str(found.sequence if found else 0)}
        await self._bus.store(subject, wire.dumps(info), {**headers, **expected})

    async def _purge(self, nuid: str) -> None:
        subject = self._bus.names.object_chunk(nuid)
        await self._bus.api(f"STREAM.PURGE.{self._stream}", {"filter": subject})

    # --- reading -------------------------------------------------------------------------------

    async def get(self, digest: str) -> bytes:
        """Return the content of *digest*; `NotFoundError` when it is not stored."""
        return b"".join([chunk async for chunk in self.get_stream(digest)])

    async def get_stream(self, digest: str) -> AsyncGenerator[bytes, None]:
        """Give the content in pieces; `InternalError` at the end when it is not what was hashed."""
        info = await self._info(digest)
        if info is None:
            raise NotFoundError(f"no object {digest}", digest=digest)
        subject = self._bus.names.object_chunk(info["nuid"])
        hashed, read, after = hashlib.sha256(), 0, 0
        while read < info["chunks"]:
            found = await self._bus.following(self._stream, subject, after + 1, _BATCH)
            if not found:
                break
            for stored in found:
                hashed.update(stored.payload)
                yield stored.payload
            read += len(found)
            after = found[-1].sequence
        wanted = base64.urlsafe_b64decode(info["digest"].removeprefix("SHA-256="))
        if read != info["chunks"] or hashed.digest() != wanted:
            raise InternalError(f"object {digest} is damaged", digest=digest)

    async def size(self, digest: str) -> int:
        """Return the size in bytes; `NotFoundError` when it is not stored."""
        info = await self._info(digest)
        if info is None:
            raise NotFoundError(f"no object {digest}", digest=digest)
        return int(info["size"])

    async def _info(self, name: str) -> dict[str, Any] | None:
        subject = self._bus.names.object_info(_encoded(name))
        stored = await self._bus.last(self._stream, subject)
        if stored is None:
            return None
        info: dict[str, Any] = wire.loads(stored.payload)
        return None if info.get("deleted") else info

    @property
    def _stream(self) -> str:
        return f"OBJ_{self._bus.names.objects}"


def _encoded(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()
