"""``trine up``: everything in one command."""

import json
import signal
from pathlib import Path
from typing import Any

import anyio
import click

from trine import discovery
from trine.app import installed, load
from trine.cli import options
from trine.cli.observing import observing
from trine.system import running


@click.command()
@click.argument("apps", nargs=-1, metavar="[MODULE:APP]...")
@options.connection
@options.log_level
@click.option("--host", help="Where HTTP listens [127.0.0.1].")
@click.option("--port", type=int, help="Where HTTP listens [3111]; 0 takes a free port.")
@click.option(
    "--durability",
    type=click.Choice(["always", "100ms", "fast"]),
    help="How soon the embedded server syncs to disk [100ms].",
)
@click.option(
    "--workers",
    default="auto",
    show_default=True,
    help="Training workers to start: a number, or auto: one per GPU, none without a GPU.",
)
@options.as_json
def up(apps: tuple[str, ...], workers: str, as_json: bool, **flags: Any) -> None:
    """Run a system here: NATS server, functions, triggers, HTTP, and workers.

    Serves the research functions and the apps named as arguments. Ctrl-C hands work back and ends;
    a second Ctrl-C ends at once.
    """
    settings = options.settings(**flags)
    served = [*installed(), *(load(target) for target in apps)]

    async def main() -> None:
        programs = worker_programs(workers)
        async with running(
            settings, served, workers=programs, middleware=observing(settings)
        ) as system:
            nats = discovery.shown(system.nats)
            facts = {"nats": nats, "http": system.http, "workers": len(programs)}
            if as_json:
                click.echo(json.dumps(facts))
            else:
                click.echo(f"NATS   {nats}   (data in {settings.store})")
                for url in system.http:
                    click.echo(f"HTTP   {url}   ({url}/openapi.json)")
                click.echo("Ready. Ctrl-C ends it.")
            await until_signal()

    options.run(main)


async def until_signal() -> None:
    """Return at the first SIGINT or SIGTERM; the next one ends the program at once."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


def worker_programs(workers: str) -> list[list[str]]:
    """Return the arguments of the worker programs to start beside the engine."""
    if workers == "auto":
        return [["worker", "gpu", "--quiet"]] if Path("/proc/driver/nvidia/gpus").exists() else []
    if not workers.isdigit():
        raise click.BadParameter(
            f"{workers!r} is neither a number nor auto", param_hint="--workers"
        )
    return [["worker", "gpu", "--slots", workers]] if int(workers) else []
