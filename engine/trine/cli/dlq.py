"""``trine dlq``: the dead letters."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import click

from trine.cli import options
from trine.cli.table import table
from trine.client import Client
from trine.errors import UsageError
from trine.jobs import deadletters
from trine.jobs.deadletters import Letter

_queue = click.option("--queue", metavar="NAME", help="Those of one queue.")
_consumer = click.option("--consumer", metavar="NAME", help="Those of one consumer.")


@click.group()
def dlq() -> None:
    """Look at dead letters, give them to their handler again, or drop them.

    A dead letter is a job, event, tick or change that was given up, with the reason.
    """


@dlq.command()
@_queue
@_consumer
@options.place
@options.as_json
def ls(queue: str | None, consumer: str | None, as_json: bool, place: options.Place) -> None:
    """List the dead letters, the oldest first."""

    async def main(client: Client) -> None:
        letters = await deadletters.ls(client, queue=queue, consumer=consumer)
        if as_json:
            click.echo(json.dumps([_full(one) for one in letters]))
        else:
            table([_row(one) for one in letters], "no dead letters")

    options.with_client(main, place)


def _row(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "at": letter.at.isoformat(timespec="seconds"),
        "of": letter.job or letter.consumer,
        "attempts": letter.attempts,
        "code": letter.code,
        "reason": letter.reason if len(letter.reason) <= 60 else letter.reason[:57] + "...",
    }


def _full(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "at": letter.at.isoformat(),
        "queue": letter.queue,
        "job": letter.job,
        "consumer": letter.consumer,
        "attempts": letter.attempts,
        "code": letter.code,
        "reason": letter.reason,
        "subject": letter.subject,
        "headers": dict(letter.headers),
        "payload": _readable(letter.payload),
    }


def _readable(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return payload.decode(errors="replace")


@dlq.command()
@click.argument("id", type=int)
@options.place
@options.as_json
def show(id: int, as_json: bool, place: options.Place) -> None:
    """Print the dead letter ID with its headers and its payload."""

    async def main(client: Client) -> None:
        letter = _full(await deadletters.show(client, id))
        click.echo(json.dumps(letter, indent=None if as_json else 2))

    options.with_client(main, place)


_Act = Callable[..., Awaitable[int]]


def _changing(act: _Act, done: str) -> Callable[..., None]:
    def run(
        id: int | None,
        everything: bool,
        queue: str | None,
        consumer: str | None,
        as_json: bool,
        place: options.Place,
    ) -> None:
        several = everything or queue is not None or consumer is not None
        if (id is None) != several:
            raise UsageError("name one letter by its ID, or several by --all, --queue, --consumer")

        async def main(client: Client) -> None:
            count = await act(client, id, queue=queue, consumer=consumer)
            click.echo(json.dumps({done: count}) if as_json else f"{count} {done}")

        options.with_client(main, place)

    return run


def _command(name: str, act: _Act, done: str, says: str) -> None:
    command: Any = _changing(act, done)
    for option in (
        options.as_json,
        options.place,
        _consumer,
        _queue,
        click.option("--all", "everything", is_flag=True, help="All of them."),
        click.argument("id", type=int, required=False),
    ):
        command = option(command)
    dlq.command(name=name, help=says)(command)


_command(
    "redrive",
    deadletters.redrive,
    "redriven",
    "Give the dead letter ID, or several, to their handler again.",
)
_command("drop", deadletters.drop, "dropped", "Delete the dead letter ID, or several.")
