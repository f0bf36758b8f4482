"""Building an attempt's own directory from a content-addressed tree."""

import hashlib
import os
from pathlib import Path, PurePosixPath

from trine.errors import BadRequestError
from trine.objects import Objects
from trine_functions.contracts import Tree


def cache_root() -> Path:
    """Where blobs and attempts live: ``TRINE_CACHE``, else the user's cache directory."""
    if place := os.environ.get("TRINE_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trine"


async def materialise(objects: Objects, digest: str, place: Path, cache: Path) -> None:
    """Write every file of tree *digest* below the new directory *place*, read-only.

    Blobs are fetched once per host and checked against their hash each time they are used.
    """
    tree = Tree.model_validate_json(await objects.get(digest))
    place.mkdir(parents=True)
    for path, blob in tree.files.items():
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise BadRequestError(f"tree {digest[:12]} names a file outside itself: {path!r}")
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(await _blob(objects, blob.sha256, cache))
        target.chmod(0o444)


async def _blob(objects: Objects, digest: str, cache: Path) -> bytes:
    kept = cache / "blobs" / digest
    if kept.exists():
        content = kept.read_bytes()
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    content = await objects.get(digest)
    kept.parent.mkdir(parents=True, exist_ok=True)
    scratch = kept.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(kept)
    return content
