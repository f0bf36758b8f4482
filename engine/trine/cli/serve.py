"""``trine serve``: your own functions, beside a running system."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import click

from trine import discovery, streams
from trine.app import load
from trine.cli import options
from trine.cli.observing import observing
from trine.cli.up import until_signal
from trine.client import Client
from trine.serving.processes import ChildFailedError, serving_processes
from trine.serving.worker import Worker


@click.command()
@click.argument("apps", nargs=-1, required=True, metavar="MODULE:APP...")
@options.connection
@options.log_level
@click.option("--drain-seconds", default=10.0, show_default=True, help="For running work to end.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="For handlers that keep a processor busy.",
)
@click.option("--ready-fd", type=int, hidden=True, help="Where a parent hears that we serve.")
@options.as_json
def serve(
    apps: tuple[str, ...],
    drain_seconds: float,
    processes: int,
    ready_fd: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Serve the functions and triggers of apps: module:app, or path/to/file.py:app."""
    settings = options.settings(**flags)
    if processes > 1:
        arguments = ["serve", *apps, "--drain-seconds", str(drain_seconds), *_given(flags)]
        _in_processes(arguments, processes, drain_seconds, as_json=as_json)
        return
    served = [load(target) for target in apps]

    async def main() -> None:
        url = settings.nats or discovery.server_url(settings.store)
        async with (
            Client.connect(url, namespace=settings.namespace) as client,
            anyio.create_task_group() as tasks,
        ):
            await streams.ensure(client.bus)
            worker = Worker(
                client,
                served,
                middleware=observing(settings),
                tracebacks=settings.tracebacks,
            )
            await tasks.start(worker.run)
            functions = sorted(name for app in served for name in app.functions)
            facts = {"worker": worker.id, "nats": discovery.shown(url), "functions": functions}
            if ready_fd is None:
                click.echo(json.dumps(facts) if as_json else f"serving {', '.join(functions)}")
            else:
                os.write(ready_fd, json.dumps(facts).encode())
                os.close(ready_fd)
            await until_signal()
            worker.stop()
            tasks.cancel_scope.deadline = anyio.current_time() + drain_seconds

    options.run(main)


def _given(flags: dict[str, Any]) -> Iterator[str]:
    """Give *flags* as the arguments that they came from."""
    for name, value in flags.items():
        if value is True:
            yield f"--{name.replace('_', '-')}"
        elif value is not None and value is not False:
            yield from (f"--{name.replace('_', '-')}", str(value))


def _in_processes(arguments: list[str], count: int, drain_seconds: float, *, as_json: bool) -> None:
    """Run *count* processes with *arguments* until a signal; say once that all of them serve."""

    async def main() -> None:
        async with serving_processes(arguments, count, drain_seconds) as processes:
            facts = processes.facts
            functions = facts[0]["functions"]
            if as_json:
                workers = [one["worker"] for one in facts]
                said = {"workers": workers, "nats": facts[0]["nats"], "functions": functions}
                click.echo(json.dumps(said))
            else:
                click.echo(f"serving {', '.join(functions)} in {count} processes")
            await until_signal()

    try:
        options.run(main)
    except ChildFailedError as error:  # it has said why
        sys.exit(max(1, error.exit_status))
