"""The payload: eight fields, padded to a size."""

from pydantic import BaseModel


class Echo(BaseModel):
    id: int
    name: str
    kind: str
    score: float
    ok: bool
    tags: list[str]
    ts: float
    body: str


def of_size(size: int) -> Echo:
    """Return an `Echo` whose JSON has about *size* bytes."""
    value = Echo(id=1, name="n", kind="k", score=0.5, ok=True, tags=["a"], ts=1.5, body="")
    missing = size - len(value.model_dump_json())
    return value.model_copy(update={"body": "x" * max(0, missing)})
