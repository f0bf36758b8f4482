"""A scope: a named set of typed keys, declared once."""

from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from trine import wire
from trine.errors import InternalError

M = TypeVar("M")


class Scope(Generic[M]):
    """A named set of keys whose values are *model*: ``Scope("best", Best)``.

    With ``changes=True`` every write also emits an event with the old and the new value, in one
    transaction with it: Key triggers on the scope miss nothing. Without it they see the latest.
    """

    def __init__(self, name: str, model: type[M], *, changes: bool = False) -> None:
        self.name = wire.name(name, "scope")
        self.model = model
        self.changes = changes
        self._adapter: TypeAdapter[M] = TypeAdapter(model)

    def encode(self, value: M) -> bytes:
        return self._adapter.dump_json(value)

    def decode(self, payload: bytes) -> M:
        try:
            return self._adapter.validate_json(payload)
        except ValidationError as error:
            raise InternalError(f"stored value of {self.name} is not readable: {error}") from error

    def __repr__(self) -> str:
        return f"Scope({self.name!r})"
