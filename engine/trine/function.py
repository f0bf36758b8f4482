"""Functions: a typed Python callable with a stable id, which stays callable as it is."""

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Sequence,
)
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints, overload

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from trine import payload, wire
from trine.context import Context
from trine.errors import InvalidInputError, UsageError, WriteConflictError
from trine.retry import Retry

if TYPE_CHECKING:
    from trine.middleware import Middleware
    from trine.middleware.limits import Rate

I = TypeVar("I")  # noqa: E741 - input, as O is output
O = TypeVar("O")  # noqa: E741
KEEP_REPLY_SECONDS = 3600.0


class Function(Generic[I, O]):
    """A function that can be served, called and triggered. Made by `App.function`.

    The handler takes an optional `Context` and either one pydantic model, which is the payload, or
    plain parameters, which become the fields of the payload. ``async def`` runs in the event loop,
    ``def`` in a thread, an async generator streams.
    """

    def __init__(
        self,
        id: str,
        handler: Callable[..., Any],
        *,
        retry: Retry | None = None,
        timeout: float | None = None,
        concurrency: int = 256,
        rate: "Rate | None" = None,
        priorities: bool = False,
        keep_reply: float = KEEP_REPLY_SECONDS,
        middleware: "Sequence[Middleware]" = (),
    ) -> None:
        self.id = wire.function_id(id)
        self.handler = handler
        self.retry = retry
        self.timeout = timeout
        self.concurrency = concurrency
        self.rate = rate
        self.priorities = priorities
        self.keep_reply = keep_reply
        self.middleware = tuple(middleware)
        self.streams = inspect.isasyncgenfunction(handler)
        self._sync = not self.streams and not inspect.iscoroutinefunction(handler)
        self.doc = inspect.getdoc(handler) or ""
        self._inspect()
        self.__doc__ = handler.__doc__
        self.__name__ = getattr(handler, "__name__", id)
        self.__module__ = handler.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the handler as it was written: a unit test needs no server."""
        return self.handler(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Function({self.id!r})"

    # --- the signature -------------------------------------------------------------------------

    def _inspect(self) -> None:
        try:
            hints = get_type_hints(self.handler, include_extras=True)
        except NameError as error:
            raise UsageError(f"function {self.id}: {error} in an annotation") from error
        self._context: str | None = None
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(self.handler).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise UsageError(
                    f"function {self.id}: parameter {parameter.name!r} must be a named one"
                )
            hint = hints.get(parameter.name, Any)
            if hint is Context:
                self._context = parameter.name
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hint, default)
        self._payload: str | None = None
        only = next(iter(fields.values()))[0] if len(fields) == 1 else None
        if inspect.isclass(only) and issubclass(only, BaseModel):
            self._payload = next(iter(fields))
            self.input: type[BaseModel] | None = only
        elif fields:
            self.input = create_model(
                f"{self.handler.__name__}_input",
                __config__=ConfigDict(extra="ignore", arbitrary_types_allowed=False),
                **fields,
            )
        else:
            self.input = None
        returns = hints.get("return", Any)
        if self.streams:
            returns = getattr(returns, "__args__", (Any,))[0]
        self._returns = _adapter(returns)

    @property
    def input_schema(self) -> dict[str, Any]:
        return {"type": "object"} if self.input is None else _input_schema(self.input)

    @property
    def output_schema(self) -> dict[str, Any]:
        return _output_schema(self._returns)

    # --- the wire ------------------------------------------------------------------------------

    def decode(self, payload: bytes) -> BaseModel | None:
        """Validate a payload; `InvalidInputError` names the field."""
        if self.input is None:
            return None
        try:
            # Past pydantic's own wrappers, which cost a tenth of a call.
            return self.input.__pydantic_validator__.validate_json(payload or b"{}")  # type: ignore[no-any-return]
        except ValidationError as error:
            raise invalid(self.id, error) from error

    def decode_value(self, value: Any) -> BaseModel | None:
        """Validate a payload that is a Python value: a model or what JSON can hold."""
        if self.input is None:
            return None
        if isinstance(value, self.input):
            return value
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        try:
            return self.input.model_validate({} if value is None else value)
        except ValidationError as error:
            raise invalid(self.id, error) from error

    def encode_input(self, value: Any) -> bytes:
        return payload.encode(self._bound_input(value))

    def _bound_input(self, value: Any) -> Any:
        if self.input is None or isinstance(value, self.input):
            return value
        return self.decode_value(value)

    def encode(self, value: Any) -> bytes:
        """Serialise an output. A mistake of the function, not of the caller, when it fails."""
        return self._returns.serializer.to_json(value)

    def decode_output(self, payload: bytes) -> O:
        return self._returns.validator.validate_json(payload)  # type: ignore[no-any-return]

    # --- running -------------------------------------------------------------------------------

    def _arguments(self, context: Context, value: BaseModel | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self._context is not None:
            arguments[self._context] = context
        if value is not None:
            if self._payload is not None:
                arguments[self._payload] = value
            else:
                arguments.update({name: getattr(value, name) for name in type(value).model_fields})
        return arguments

    def run(self, context: Context, value: BaseModel | None) -> Awaitable[Any]:
        """Run the handler; again, at once, after a `WriteConflictError`, if it has a `Retry`."""
        arguments = self._arguments(context, value)
        if self._sync:
            return anyio.to_thread.run_sync(
                lambda: self.handler(**arguments), abandon_on_cancel=True
            )
        if self.retry is None:
            return self.handler(**arguments)  # type: ignore[no-any-return]
        return self._repeated(arguments, self.retry.attempts)

    async def _repeated(self, arguments: dict[str, Any], attempts: int) -> Any:
        for attempt in range(1, attempts + 1):
            try:
                return await self.handler(**arguments)
            except WriteConflictError:
                if attempt == attempts:
                    raise
                await anyio.sleep(0.002 * attempt)  # spreads writers of the same keys
        raise AssertionError("unreachable: attempts >= 1")

    def iterate(self, context: Context, value: BaseModel | None) -> AsyncGenerator[Any, None]:
        """Start the handler of a streaming function."""
        return self.handler(**self._arguments(context, value))  # type: ignore[no-any-return]


# Many functions share a model, and making an adapter or a schema takes a millisecond.
@cache
def _cached_adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def _adapter(type_: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(type_)
    except TypeError:  # an annotation that cannot be hashed
        return TypeAdapter(type_)


@cache
def _input_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


@cache
def _output_schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    return adapter.json_schema(mode="serialization")


def invalid(what: str, error: ValidationError) -> InvalidInputError:
    """Return the error that names the first field which is wrong, and lists all of them."""
    problems = [
        {"field": ".".join(map(str, one["loc"])) or "(body)", "problem": one["msg"]}
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    first = problems[0]
    return InvalidInputError(f"{what}: {first['field']}: {first['problem']}", fields=problems)


class FunctionDecorator:
    """What `App.function` returns: typed so that the function's input and output are known."""

    def __init__(self, make: Callable[[Callable[..., Any]], Function[Any, Any]]) -> None:
        self._make = make

    @overload
    def __call__(self, handler: Callable[[Context, I], AsyncIterator[O]]) -> Function[I, O]: ...
    @overload
    def __call__(
        self, handler: Callable[[Context, I], Coroutine[Any, Any, O]]
    ) -> Function[I, O]: ...
    @overload
    def __call__(
        self, handler: Callable[[Context], Coroutine[Any, Any, O]]
    ) -> Function[None, O]: ...
    @overload
    def __call__(self, handler: Callable[[I], Coroutine[Any, Any, O]]) -> Function[I, O]: ...
    @overload
    def __call__(self, handler: Callable[..., AsyncIterator[O]]) -> Function[Any, O]: ...
    @overload
    def __call__(self, handler: Callable[..., Coroutine[Any, Any, O]]) -> Function[Any, O]: ...
    @overload
    def __call__(self, handler: Callable[..., O]) -> Function[Any, O]: ...
    def __call__(self, handler: Callable[..., Any]) -> Function[Any, Any]:
        return self._make(handler)


__all__ = ["Function", "FunctionDecorator", "invalid"]
