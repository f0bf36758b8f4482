"""``trine state``: read, write and follow typed state as JSON."""

import json
from typing import Any

import click

from trine import Scope
from trine.cli import options
from trine.cli.call import show
from trine.client import Client
from trine.errors import InvalidInputError, UsageError
from trine.state import Gone, Store


@click.group()
def state() -> None:
    """Read, write and follow the keys of a scope.

    ``set`` and ``rm`` write the bare value, without the event of a scope that records changes, and
    refuse such a scope.
    """


def _store(client: Client, scope: str) -> Store[Any]:
    declared: Scope[Any] = Scope(scope, object)
    return client.state(declared)


@state.command()
@click.argument("scope")
@click.argument("key")
@options.place
@options.as_json
def get(
    scope: str,
    key: str,
    as_json: bool,
    place: options.Place,
) -> None:
    """Print the value of KEY."""

    async def main(client: Client) -> None:
        show((await _store(client, scope).get(key)).value, one_line=as_json)

    options.with_client(main, place)


@state.command()
@click.argument("scope")
@click.argument("prefix", default="")
@options.place
@options.as_json
def ls(
    scope: str,
    prefix: str,
    as_json: bool,
    place: options.Place,
) -> None:
    """List keys and values, all or those below PREFIX."""

    async def main(client: Client) -> None:
        entries = await _store(client, scope).entries(prefix)
        if as_json:
            click.echo(json.dumps({entry.key: entry.value for entry in entries}))
            return
        for entry in entries:
            click.echo(f"{entry.key}\t{json.dumps(entry.value)}")

    options.with_client(main, place)


@state.command(name="set")
@click.argument("scope")
@click.argument("key")
@click.argument("value")
@options.place
@options.as_json
def put(
    scope: str,
    key: str,
    value: str,
    as_json: bool,
    place: options.Place,
) -> None:
    """Write VALUE, which is JSON, to KEY."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise InvalidInputError(f"the value is not JSON: {error}") from error

    async def main(client: Client) -> None:
        await _refuse_recorded(client, scope)
        await _store(client, scope).put(key, parsed)
        if as_json:
            click.echo(json.dumps({"key": key, "value": parsed}))

    options.with_client(main, place)


@state.command()
@click.argument("scope")
@click.argument("key")
@options.place
@options.as_json
def rm(
    scope: str,
    key: str,
    as_json: bool,
    place: options.Place,
) -> None:
    """Delete KEY."""

    async def main(client: Client) -> None:
        await _refuse_recorded(client, scope)
        await _store(client, scope).delete(key)
        if as_json:
            click.echo(json.dumps({"key": key, "value": None}))

    options.with_client(main, place)


@state.command()
@click.argument("scope")
@click.argument("prefix", default="")
@options.place
@options.as_json
def watch(
    scope: str,
    prefix: str,
    as_json: bool,
    place: options.Place,
) -> None:
    """Print a line for every key, then for every change, until Ctrl-C; without a value: gone."""

    async def main(client: Client) -> None:
        async for entry in _store(client, scope).watch(prefix):
            value = None if isinstance(entry, Gone) else entry.value
            line = {"key": entry.key, "value": value, "revision": entry.revision}
            text = "" if isinstance(entry, Gone) else json.dumps(value)
            click.echo(json.dumps(line) if as_json else f"{entry.key}\t{text}")

    options.with_client(main, place)


async def _refuse_recorded(client: Client, scope: str) -> None:
    names = client.bus.names
    if await client.bus.subjects(names.events, names.events_below(f"changed.{scope}")):
        raise UsageError(f"scope {scope!r} records its changes: call its functions instead")
