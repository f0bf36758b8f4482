"""Bindings made at run time, as data: to functions of any process and any language.

They are keys of the scope ``bindings``. The functions ``trigger.add``, ``trigger.remove`` and
``trigger.list`` change and show them; `trine.hosting` runs them in every engine.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from trine import trigger, wire
from trine.app import App
from trine.catalogue import BindingInfo, directory
from trine.catalogue.directory import bindings
from trine.client import Client
from trine.context import Context
from trine.errors import (
    ConflictError,
    InternalError,
    InvalidInputError,
    KeyMissingError,
    NotFoundError,
    TrineError,
    UsageError,
)
from trine.function import invalid
from trine.hosting import PREFIX, BindingHost, RemoteFunction
from trine.trigger import Binding, Trigger

app = App("trigger")


class NewBinding(BaseModel):
    """A trigger kind, its settings, and the function that it shall run."""

    kind: str
    function: str
    config: dict[str, Any] = Field(default_factory=dict)


class Added(BaseModel):
    """The binding as it is kept; ``served``: whether somebody serves the function now."""

    binding: BindingInfo
    served: bool


class ById(BaseModel):
    """Names a binding."""

    id: str


def described(kind: str, function: str, config: Mapping[str, Any], client: Client) -> BindingInfo:
    """Return the binding that the arguments mean; `InvalidInputError` names what is wrong."""
    try:
        cls = trigger.load(kind)
    except TrineError as error:
        raise _wrong("kind", error.message) from error
    try:
        remote = RemoteFunction(client, wire.function_id(function))
    except UsageError as error:
        raise _wrong("function", error.message) from error
    info = Binding(_validated(kind, cls, config), remote).info()
    return info.model_copy(update={"id": PREFIX + info.id})


def _validated(kind: str, cls: type[Trigger], config: Mapping[str, Any]) -> Trigger:
    """Return the trigger. A kind's own ``__init__`` would say TypeError of a setting that lacks."""
    for name, setting in cls.model_fields.items():
        if setting.is_required() and name not in config and setting.alias not in config:
            raise _wrong(f"config.{name}", "Field required")
    try:
        return cls.model_validate(dict(config))
    except ValidationError as error:
        found = invalid(f"trigger {kind}", error)
        fields = [
            {**one, "field": f"config.{one['field']}"} for one in found.details.get("fields", ())
        ]
        raise InvalidInputError(found.message, fields=fields) from error
    except (TypeError, ValueError) as error:  # a setting called as an argument of __init__
        raise _wrong("config", str(error)) from error


def _wrong(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError(
        f"trigger.add: {name}: {problem}", fields=[{"field": name, "problem": problem}]
    )


@app.function("trigger.add")
async def add(ctx: Context, new: NewBinding) -> Added:
    """Bind a trigger to a function, now and after every restart; the same twice is one."""
    info = described(new.kind, new.function, new.config, ctx.client)
    known = (await directory.functions(ctx.bus)).get(info.function)
    if known and known.streams and trigger.load(new.kind).placement != "gateway":
        raise _wrong("function", f"{known.id} streams: only a route can run it")
    try:
        await ctx.state(bindings).create(info.id, info)
    except ConflictError:  # it is there, or what is there is not readable: written anew
        await ctx.state(bindings).put(info.id, info)
    return Added(binding=info, served=known is not None)


@app.function("trigger.remove")
async def remove(ctx: Context, which: ById) -> BindingInfo:
    """Remove a binding that was made as data."""
    try:
        info = (await ctx.state(bindings).get(which.id)).value
    except (KeyMissingError, UsageError) as error:
        raise NotFoundError(
            f"no binding {which.id[:200]!r} was made as data: see `trine trigger ls`"
        ) from error
    except InternalError:  # what is there is not readable: it can be removed all the same
        info = BindingInfo(id=which.id, kind="", function="", config={})
    await ctx.state(bindings).delete(which.id)
    return info


@app.function("trigger.list")
async def list_(ctx: Context) -> list[BindingInfo]:
    """List the bindings that were made as data."""
    return [info for info, _ in await directory.stored_bindings(ctx.bus)]


__all__ = ["Added", "BindingHost", "ById", "NewBinding", "app", "described"]
