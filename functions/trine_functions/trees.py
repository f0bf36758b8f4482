"""Trees of source files: stored by content, changed without touching what they came from."""

import hashlib
from pathlib import PurePosixPath

from pydantic import BaseModel, Field

from trine import App, Client, Context
from trine.errors import InvalidInputError, NotFoundError
from trine_functions import knobs
from trine_functions.contracts import Blob, KnobValue, Target, Tree
from trine_triggers import Http

app = App("trees")

_FILES = 200


class AddTarget(BaseModel):
    """Files of a training target, and how they are run."""

    name: str = Field(min_length=1, max_length=100)
    files: dict[str, str]
    command: str = Field(min_length=1, max_length=2000)
    editable: str = "train.py"
    budget_seconds: float = Field(gt=0, le=24 * 3600)
    startup_seconds: float = Field(default=120, gt=0, le=24 * 3600)
    requirement: str = Field(default="any", pattern=r"^[a-zA-Z0-9_-]+$")


@app.on(Http("POST", "/api/target/add"))
@app.function("target.add")
async def add_target(ctx: Context, request: AddTarget) -> Target:
    """Store a training target; give the reply to `experiment.setup`."""
    if request.editable not in request.files:
        raise InvalidInputError(f"editable: {request.editable!r} is not one of the files")
    tree = await store(ctx.client, request.files)
    return Target(tree=tree, **request.model_dump(exclude={"files"}))


async def store(client: Client, files: dict[str, str]) -> str:
    """Store *files* as a tree and return its hash."""
    if not files or len(files) > _FILES:
        raise InvalidInputError(f"files: between 1 and {_FILES} of them")
    return await _put(client, {}, files)


async def load(client: Client, tree: str) -> Tree:
    """Return a stored tree; `NotFoundError` when there is none."""
    return Tree.model_validate_json(await client.objects.get(tree))


async def text(client: Client, tree: Tree, path: str) -> str:
    """Return the text of one file of a tree."""
    blob = tree.files.get(path)
    if blob is None:
        raise NotFoundError(f"the tree has no file {path!r}", path=path)
    return (await client.objects.get(blob.sha256)).decode()


async def changed(
    client: Client,
    base: str,
    editable: str,
    *,
    set_knobs: dict[str, KnobValue],
    files: dict[str, str],
) -> str:
    """Return the hash of *base* with *files* replaced and *set_knobs* set in the editable file."""
    tree = await load(client, base)
    protected = sorted(path for path in files if path in tree.files and path != editable)
    if protected:
        raise InvalidInputError(f"files: {protected[0]!r} is protected; edit {editable!r}")
    edited = dict(files)
    if set_knobs:
        source = edited.get(editable)
        if source is None:
            source = await text(client, tree, editable)
        edited[editable] = knobs.write(source, set_knobs)
    return await _put(client, tree.files, edited)


async def _put(client: Client, kept: dict[str, Blob], files: dict[str, str]) -> str:
    blobs = dict(kept)
    for path, content in files.items():
        data = content.encode()
        digest = hashlib.sha256(data).hexdigest()
        if blobs.get(_relative(path)) != Blob(sha256=digest, size=len(data)):
            await client.objects.put(data)
        blobs[_relative(path)] = Blob(sha256=digest, size=len(data))
    return await client.objects.put(Tree(files=blobs).encode())


def _relative(path: str) -> str:
    """Return *path* if it stays inside the tree."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in path:
        raise InvalidInputError(f"files: {path[:100]!r} is not a relative path inside the tree")
    return str(parts)
