"""Big things: a store of objects by the SHA-256 of their content."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from nats import errors as nats_errors
from nats.js.errors import APIError, BucketNotFoundError, NotFoundError

from trine.bus import Bus, error_of
from trine.errors import InternalError, UnavailableError
from trine.errors import NotFoundError as MissingError


@contextlib.contextmanager
def _mapped(digest: str) -> Iterator[None]:
    """Raise our errors for those of nats-py's object store."""
    try:
        yield
    except BucketNotFoundError as error:
        raise MissingError("the object store is not set up: start `trine up`") from error
    except NotFoundError as error:
        raise MissingError(f"no object {digest}", digest=digest) from error
    except APIError as error:
        text = error.description or str(error)
        raise error_of(error.err_code or 0, error.code or 0, text) from error
    except nats_errors.Error as error:
        raise UnavailableError(f"NATS: {error!r}") from error


class Objects:
    """Content-addressed blobs: equal content is stored once; what is read is what was hashed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._store: Any = None

    async def _bucket(self) -> Any:
        if self._store is None:
            stream = self._bus.connection.jetstream()
            self._store = await stream.object_store(self._bus.names.objects)
        return self._store

    async def put(self, content: bytes) -> str:
        """Store *content* and return its hash, 64 hexadecimal digits."""
        digest = hashlib.sha256(content).hexdigest()
        with _mapped(digest):
            bucket = await self._bucket()
            try:
                await bucket.get_info(digest)
            except NotFoundError as error:
                if isinstance(error, BucketNotFoundError):
                    raise
                await bucket.put(digest, content)
        return digest

    async def get(self, digest: str) -> bytes:
        """Return the content of *digest*; `NotFoundError` when it is not stored."""
        with _mapped(digest):
            bucket = await self._bucket()
            found = await bucket.get(digest)
        content: bytes = found.data
        if hashlib.sha256(content).hexdigest() != digest:
            raise InternalError(f"object {digest} is damaged", digest=digest)
        return content
