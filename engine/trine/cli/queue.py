"""``trine queue``: how full the queues are, and holding them up."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from trine.cli import options
from trine.cli.table import table
from trine.client import Client
from trine.jobs import queues


@click.group()
def queue() -> None:
    """Look at queues, hold them up, empty them, wait for their end.

    A queue is named by its name, or by the function whose durable calls wait in it.
    """


@queue.command()
@options.place
@options.as_json
def ls(as_json: bool, place: options.Place) -> None:
    """List the queues: what waits, runs, is delayed, is dead."""

    async def main(client: Client) -> None:
        rows = [_row(one) for one in await queues.ls(client)]
        if as_json:
            click.echo(json.dumps(rows))
        else:
            table(rows, "no queues")

    options.with_client(main, place)


def _row(info: queues.QueueInfo) -> dict[str, Any]:
    row = asdict(info)
    until = info.paused_until
    row["paused_until"] = None if until is None else until.isoformat()
    return row


@queue.command()
@click.argument("name")
@click.option("--seconds", type=float, help="Until then; without: until it is resumed.")
@options.place
def pause(name: str, seconds: float | None, place: options.Place) -> None:
    """Give out no job of the queue NAME; what runs goes on."""
    until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    options.with_client(lambda client: queues.pause(client, name, until), place)


@queue.command()
@click.argument("name")
@options.place
def resume(name: str, place: options.Place) -> None:
    """Let the queue NAME go on."""
    options.with_client(lambda client: queues.resume(client, name), place)


@queue.command()
@click.argument("name")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="In seconds.")
@options.place
def drain(name: str, timeout: float, place: options.Place) -> None:
    """Wait until nothing of the queue NAME waits or runs."""
    options.with_client(lambda client: queues.drain(client, name, timeout), place)


@queue.command()
@click.argument("name")
@options.place
@options.as_json
def purge(name: str, as_json: bool, place: options.Place) -> None:
    """Cancel every job of the queue NAME that waits or is delayed."""

    async def main(client: Client) -> None:
        count = await queues.purge(client, name)
        click.echo(json.dumps({"cancelled": count}) if as_json else f"{count} cancelled")

    options.with_client(main, place)
