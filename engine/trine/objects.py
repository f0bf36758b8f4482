"""Big things: a store of objects by the SHA-256 of their content."""

import hashlib
from typing import Any

from nats.js.errors import BucketNotFoundError, NotFoundError

from trine.bus import Bus
from trine.errors import InternalError
from trine.errors import NotFoundError as MissingError


class Objects:
    """Content-addressed blobs: equal content is stored once; what is read is what was hashed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._store: Any = None

    async def _bucket(self) -> Any:
        if self._store is None:
            try:
                self._store = await self._bus.connection.jetstream().object_store(
                    self._bus.names.objects
                )
            except (BucketNotFoundError, NotFoundError) as error:
                raise MissingError("the object store is not set up: start `trine up`") from error
        return self._store

    async def put(self, content: bytes) -> str:
        """Store *content* and return its hash, 64 hexadecimal digits."""
        digest = hashlib.sha256(content).hexdigest()
        bucket = await self._bucket()
        try:
            await bucket.get_info(digest)
        except NotFoundError:
            await bucket.put(digest, content)
        return digest

    async def get(self, digest: str) -> bytes:
        """Return the content of *digest*; `NotFoundError` when it is not stored."""
        bucket = await self._bucket()
        try:
            found = await bucket.get(digest)
        except NotFoundError as error:
            raise MissingError(f"no object {digest}", digest=digest) from error
        content: bytes = found.data
        if hashlib.sha256(content).hexdigest() != digest:
            raise InternalError(f"object {digest} is damaged", digest=digest)
        return content
