"""``trine worker``: train what the queue holds, on the devices of this host."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import anyio
import click
import structlog
from anyio.abc import TaskStatus

from trine import Client, catalogue, discovery, streams
from trine.cli import options
from trine.cli.up import until_signal
from trine.embedded import die_with_parent
from trine.serving.worker import worker_id
from trine.settings import Settings
from trine.system import stop_children
from trine_workers.devices import Device, select
from trine_workers.slot import Slot
from trine_workers.tree import cache_root

log = structlog.get_logger("trine")


@click.command()
@click.argument("kind", type=click.Choice(["gpu"]), default="gpu")
@options.connection
@options.log_level
@click.option(
    "--devices", default="auto", show_default=True, help="auto, cpu, or GPUs: 0,1 or UUIDs."
)
@click.option("--slots", default=1, show_default=True, help="Runs at once on each device.")
@click.option("--requirement", default="any", show_default=True, help="The jobs to take.")
@click.option("--drain-seconds", default=0.0, show_default=True, help="For a run to end.")
@click.option("--quiet", is_flag=True, help="Do not say where it trains.")
@options.as_json
def worker(
    kind: str,
    devices: str,
    slots: int,
    requirement: str,
    drain_seconds: float,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train experiments: one process per device and slot, on GPUs, else on the CPU.

    SIGTERM hands a running experiment back, after --drain-seconds, and another worker runs it.
    """
    assert kind == "gpu"
    settings = options.settings(**flags)
    places = [device for device in select(devices) for _ in range(slots)]
    if not quiet and not any(device.uuid for device in places):
        click.echo("no GPU here: training on the CPU", err=True)
    if importlib.util.find_spec("torch") is None:
        log.warning("torch_missing", do="pip install 'trine[gpu]' for targets that need torch")
    if len(places) == 1:
        options.run(lambda: _one(settings, places[0], requirement, drain_seconds, as_json))
    else:
        options.run(lambda: _many(settings, places, requirement, drain_seconds, as_json))


async def _one(
    settings: Settings, device: Device, requirement: str, drain_seconds: float, as_json: bool
) -> None:
    """Be the process of one slot."""
    url = settings.nats or discovery.server_url(settings.store)
    name = worker_id()
    stopping = anyio.Event()
    async with (
        Client.connect(url, namespace=settings.namespace, name="trine-worker") as client,
        anyio.create_task_group() as tasks,
    ):
        await streams.ensure(client.bus)  # the engine may not have run yet
        slot = Slot(client, device, name, cache_root(), requirement)

        async def train(*, task_status: TaskStatus[str]) -> None:
            await slot.run(stopping, task_status=task_status)
            tasks.cancel_scope.cancel()

        await tasks.start(train)
        present = catalogue.presence(client.bus, name, apps=[f"train on {slot.id}"])
        await tasks.start(present.keep)
        log.info("training", slot=slot.id, device=device.name, worker=name)
        if as_json:
            click.echo(json.dumps({"slot": slot.id, "device": device.name, "worker": name}))
        await until_signal()
        stopping.set()
        tasks.cancel_scope.deadline = anyio.current_time() + max(0.05, drain_seconds)


async def _many(
    settings: Settings, places: list[Device], requirement: str, drain_seconds: float, as_json: bool
) -> None:
    """Start a process for each slot, and start it again when it dies."""
    url = settings.nats or discovery.server_url(settings.store)

    def start(device: Device) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "trine", "worker", "gpu", "--quiet"),
                *("--namespace", settings.namespace),
                *("--log-level", settings.log_level),
                *("--devices", device.uuid or "cpu", "--requirement", requirement),
                *("--drain-seconds", str(drain_seconds)),
                *(["--json"] if as_json else []),
            ],
            env={**os.environ, "TRINE_NATS": url},  # not an argument: it may hold a password
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl
        )

    children = [start(device) for device in places]

    async def watch() -> None:
        while True:
            await anyio.sleep(1)
            for number, child in enumerate(children):
                if child.poll() is not None:
                    log.error("worker_ended", pid=child.pid, code=child.returncode)
                    children[number] = start(places[number])

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await until_signal()
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await stop_children(children, seconds=drain_seconds + 3)
