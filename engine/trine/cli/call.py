"""``trine call``: call a function."""

import json
import sys
from typing import Any

import click

from trine.cli import options
from trine.client import Client
from trine.errors import InvalidInputError


@click.command()
@click.argument("function")
@click.argument("payload", nargs=-1, metavar="[KEY=VALUE... | JSON | -]")
@options.place
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait.")
@click.option("--stream", is_flag=True, help="For a streaming function: a line of JSON an item.")
@click.option("--send", is_flag=True, help="Enqueue a durable call and print the job, queue/id.")
@click.option("--json", "as_json", is_flag=True, help="Print one line [indented on a terminal].")
def call(
    function: str,
    payload: tuple[str, ...],
    timeout: float,
    stream: bool,
    send: bool,
    as_json: bool,
    place: options.Place,
) -> None:
    """Call FUNCTION and print its output.

    The payload is key=value pairs (a value that is JSON is taken as JSON), one JSON object, or -
    for JSON on stdin.
    """
    value = parse(payload)

    async def main(client: Client) -> None:
        if stream:
            async for item in client.stream(function, value, timeout=timeout):
                click.echo(json.dumps(item))
        elif send:
            click.echo((await client.send(function, value)).ref)
        else:
            show(await client.call(function, value, timeout=timeout), one_line=as_json)

    options.with_client(main, place)


def show(value: Any, *, one_line: bool) -> None:
    """Print JSON, indented for a person."""
    indent = 2 if sys.stdout.isatty() and not one_line else None
    click.echo(json.dumps(value, indent=indent))


def parse(payload: tuple[str, ...]) -> Any:
    """Return the payload that the arguments mean."""
    if not payload:
        return {}
    if len(payload) == 1 and (payload[0] == "-" or payload[0].lstrip()[:1] in ("{", "[")):
        text = sys.stdin.read() if payload[0] == "-" else payload[0]
        try:
            return json.loads(text)
        except ValueError as error:
            raise InvalidInputError(f"the payload is not JSON: {error}") from error
    value: dict[str, Any] = {}
    for pair in payload:
        name, equals, text = pair.partition("=")
        if not equals:
            raise click.UsageError(f"{pair!r} is not key=value, nor JSON, nor -")
        try:
            value[name] = json.loads(text)
        except ValueError:
            value[name] = text
    return value
