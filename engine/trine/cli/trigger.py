"""``trine trigger``: bindings made at run time, as data."""

import json
from typing import Any

import click

from trine.cli import options
from trine.cli.call import show
from trine.client import Client
from trine.errors import FunctionNotFoundError, UnavailableError


@click.group()
def trigger() -> None:
    """Bind triggers to functions of any process and language, without code.

    Bindings are kept and run by the engine, `trine up`, now and after every restart.
    """


@trigger.command()
@click.argument("kind")
@click.argument("config", metavar="CONFIG_JSON")
@click.argument("function")
@options.place
@options.as_json
def add(kind: str, config: str, function: str, as_json: bool, place: options.Place) -> None:
    """Bind a trigger of KIND, with the settings CONFIG_JSON, to FUNCTION.

    For example: trine trigger add cron '{"expression": "@hourly"}' report.make
    """
    try:
        settings = json.loads(config)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="CONFIG_JSON") from error
    if not isinstance(settings, dict):
        raise click.BadParameter("not a JSON object", param_hint="CONFIG_JSON")

    async def main(client: Client) -> None:
        new = {"kind": kind, "config": settings, "function": function}
        added = await _engine(client, "trigger.add", new)
        if as_json:
            click.echo(json.dumps(added))
            return
        click.echo(added["binding"]["id"])
        if not added["served"]:
            name = added["binding"]["function"]
            click.echo(f"nobody serves {name} now: the binding works once somebody does", err=True)

    options.with_client(main, place)


@trigger.command()
@click.argument("id")
@options.place
@options.as_json
def rm(id: str, as_json: bool, place: options.Place) -> None:
    """Remove the binding ID, as `trine trigger ls` shows it."""

    async def main(client: Client) -> None:
        removed = await _engine(client, "trigger.remove", {"id": id})
        if as_json:
            click.echo(json.dumps(removed))

    options.with_client(main, place)


@trigger.command()
@options.place
@options.as_json
def ls(as_json: bool, place: options.Place) -> None:
    """List the bindings that were made as data."""

    async def main(client: Client) -> None:
        found = await _engine(client, "trigger.list", {})
        if as_json:
            show(found, one_line=True)
            return
        for one in found:
            settings = json.dumps(one["config"])
            click.echo(f"{one['id']}  {one['kind']}  {one['function']}  {settings}")
        if not found:
            click.echo("no bindings", err=True)

    options.with_client(main, place)


async def _engine(client: Client, function: str, value: Any) -> Any:
    """Call a function that every engine serves."""
    try:
        return await client.call(function, value)
    except FunctionNotFoundError as error:
        raise UnavailableError(
            "no engine runs there: bindings are kept and run by `trine up`"
        ) from error
