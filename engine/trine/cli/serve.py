"""``trine serve``: your own functions, beside a running system."""

import json
from typing import Any

import anyio
import click

from trine import discovery, streams
from trine.app import load
from trine.cli import options
from trine.cli.up import until_signal
from trine.client import Client
from trine.serve import Worker


@click.command()
@click.argument("apps", nargs=-1, required=True, metavar="MODULE:APP...")
@options.connection
@options.log_level
@click.option("--drain-seconds", default=10.0, show_default=True, help="For running work to end.")
@options.as_json
def serve(apps: tuple[str, ...], drain_seconds: float, as_json: bool, **flags: Any) -> None:
    """Serve the functions and triggers of apps: module:app, or path/to/file.py:app."""
    settings = options.settings(**flags)
    served = [load(target) for target in apps]

    async def main() -> None:
        url = settings.nats or discovery.server_url(settings.store)
        async with (
            Client.connect(url, namespace=settings.namespace) as client,
            anyio.create_task_group() as tasks,
        ):
            await streams.ensure(client.bus)
            worker = Worker(client, served)
            await tasks.start(worker.run)
            functions = sorted(name for app in served for name in app.functions)
            facts = {"worker": worker.id, "nats": discovery.shown(url), "functions": functions}
            click.echo(json.dumps(facts) if as_json else f"serving {', '.join(functions)}")
            await until_signal()
            worker.stop()
            tasks.cancel_scope.deadline = anyio.current_time() + drain_seconds

    options.run(main)
