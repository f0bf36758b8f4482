"""``trine job``: one durable job."""

import json
from typing import Any

import click

from trine.cli import options
from trine.client import Client
from trine.errors import NotFoundError, TrineError


@click.group()
def job() -> None:
    """Look at a job or cancel it; a job is named queue/id, as `trine call --send` prints it."""


@job.command()
@click.argument("ref")
@options.place
@options.as_json
def show(ref: str, as_json: bool, place: options.Place) -> None:
    """Print where the job REF is, its progress, and its result or its error."""

    async def main(client: Client) -> None:
        one = client.job(ref)
        status = await one.status()
        shown: dict[str, Any] = {"job": ref, "status": status}
        if (progress := await one.progress()) is not None:
            shown["progress"] = progress
        if status in ("done", "failed", "cancelled"):
            try:
                shown["result"] = await one.result(5)
            except TrineError as error:
                shown["error"] = {"code": error.code, "message": error.message}
        click.echo(json.dumps(shown, indent=None if as_json else 2))

    options.with_client(main, place)


@job.command()
@click.argument("ref")
@options.place
@options.as_json
def cancel(ref: str, as_json: bool, place: options.Place) -> None:
    """End the job REF: one that waits is removed, one that runs is stopped."""

    async def main(client: Client) -> None:
        if not await client.job(ref).cancel():
            raise NotFoundError(f"{ref} has ended before, or never was", job=ref)
        click.echo(json.dumps({"cancelled": ref}) if as_json else f"{ref} cancelled")

    options.with_client(main, place)
