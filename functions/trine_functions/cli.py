"""``trine loop``: the autonomous research loop from the command line."""

import importlib.util
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console

from trine import Client, discovery
from trine.app import installed
from trine.cli import options
from trine.errors import MissingExtraError, NotFoundError, TrineError
from trine.settings import Settings
from trine.system import running
from trine_functions import targets
from trine_functions.contracts import LoopState, loops, tags
from trine_functions.follow import follow, write_reports
from trine_functions.loop import known_loop

_DEFAULT = "nanolm"
_CPU_BUDGET = 10.0
_GPU_BUDGET = 45.0

system_options = [
    click.option("--port", type=int, help="Where HTTP listens, if a system is started [3111]."),
    click.option(
        "--workers",
        type=int,
        default=2,
        show_default=True,
        help="Training workers on the CPU, if a system is started; on GPUs one each.",
    ),
    click.option(
        "--devices",
        default="auto",
        show_default=True,
        help="Where they train: auto, cpu, or GPUs 0,1.",
    ),
    click.option(
        "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
        help="Where chart, report and table go.",
    ),
]  # fmt: skip


def with_system(command: Any) -> Any:
    """Add the options of the commands that start a system where none runs."""
    for option in reversed(system_options):
        command = option(command)
    return options.connection(options.log_level(command))


@click.group()
def loop() -> None:
    """Let the search run experiments by itself: start, follow, pause, resume, stop.

    Where no system runs, `start` and `resume` run one, with workers, until the loop has ended.
    """


@loop.command()
@click.option("--tag", help="Name of the research line [today, numbered].")
@click.option("--target", default=_DEFAULT, show_default=True, help="A target, or its directory.")
@click.option("--command", default="python train.py", show_default=True, help="How it is run.")
@click.option("--editable", default="train.py", show_default=True, help="The file with the knobs.")
@click.option("--budget", type=float, help="Seconds of training a run [10 on a CPU, 45 on GPUs].")
@click.option("--experiments", default=12, show_default=True, help="How many in all.")
@click.option("--parallel", default=2, show_default=True, help="How many at a time.")
@click.option("--seed", default=0, show_default=True, help="Of the search.")
@click.option("--detach", is_flag=True, help="Return at once; needs a running system.")
@with_system
@options.as_json
def start(
    tag: str | None,
    target: str,
    command: str,
    editable: str,
    budget: float | None,
    experiments: int,
    parallel: int,
    seed: int,
    detach: bool,
    workers: int,
    devices: str,
    out: Path,
    as_json: bool,
    **flags: Any,
) -> None:
    """Start a loop on a new tag and follow it to its end."""
    settings = _settings(flags)
    place = targets.locate(target)
    request: dict[str, Any] = {
        "name": place.name,
        "files": targets.read_files(place),
        "command": command,
        "editable": editable,
        "budget_seconds": budget or (_GPU_BUDGET if _on_gpu(devices) else _CPU_BUDGET),
        "startup_seconds": 600 if _on_gpu(devices) else 90,
    }
    plan = {"experiments": experiments, "parallel": parallel, "seed": seed}

    async def begin(client: Client) -> LoopState:
        name = tag or await _new_tag(client)
        stored = await client.call("target.add", request)
        await client.call("experiment.setup", {"tag": name, "target": stored})
        return await client.call("loop.start", {"tag": name, **plan}, returns=LoopState)

    if target == _DEFAULT and importlib.util.find_spec("torch") is None and not detach:
        raise MissingExtraError("training nanolm needs torch: pip install 'trine[gpu]'")
    _run(settings, begin, workers, devices, out, detach=detach, as_json=as_json)


@loop.command()
@click.argument("tag", required=False)
@click.option("--experiments", type=int, help="A new total.")
@with_system
@options.as_json
def resume(
    tag: str | None,
    experiments: int | None,
    workers: int,
    devices: str,
    out: Path,
    as_json: bool,
    **flags: Any,
) -> None:
    """Go on with a loop that was paused, stopped or interrupted: TAG, or the latest such."""
    settings = _settings(flags)

    async def begin(client: Client) -> LoopState:
        state = await _find(client, tag, ended=tag is not None)
        request = {"tag": state.tag, "experiments": experiments}
        return await client.call("loop.resume", request, returns=LoopState)

    _run(settings, begin, workers, devices, out, detach=False, as_json=as_json)


def _verb(name: str, doc: str) -> None:
    @loop.command(name=name, help=doc)
    @click.argument("tag", required=False)
    @options.place
    @options.as_json
    def command(
        tag: str | None,
        as_json: bool,
        place: options.Place,
    ) -> None:
        async def main(client: Client) -> None:
            state = await _find(client, tag, ended=name == "status")
            said = await client.call(f"loop.{name}", {"tag": state.tag})
            if as_json:
                click.echo(json.dumps(said))
                return
            for key, value in said.items():
                click.echo(f"{key:<12} {value if isinstance(value, str) else json.dumps(value)}")

        options.with_client(main, place)


_verb("status", "Say what a loop does, why, and what remains: TAG, or the latest.")
_verb("pause", "Propose nothing more until `resume`; what runs is finished.")
_verb("stop", "End a loop; what runs is finished and recorded.")


# --- running -----------------------------------------------------------------------------------


def _settings(flags: dict[str, Any]) -> Settings:
    if flags.get("log_level") is None:
        flags["log_level"] = "error"  # the view has the terminal
    return options.settings(**flags)


def _on_gpu(devices: str) -> bool:
    if devices == "cpu":
        return False
    return devices != "auto" or Path("/proc/driver/nvidia/gpus").exists()


async def _new_tag(client: Client) -> str:
    today = datetime.now(UTC).strftime("%b%d").lower()
    known = {entry.key for entry in await client.state(tags).entries()}
    number = 1
    while (name := today if number == 1 else f"{today}-{number}") in known:
        number += 1
    return name


async def _find(client: Client, tag: str | None, *, ended: bool) -> LoopState:
    """Return the loop of *tag*, or the one started last; with *ended* also one that has ended."""
    if tag is not None:
        return await known_loop(client, tag)
    every = [entry.value for entry in await client.state(loops).entries()]
    chosen = [one for one in every if ended or one.status != "finished"]
    if not chosen:
        raise NotFoundError("there is no loop to go on with: trine loop start")
    return max(chosen, key=lambda one: one.started_at)


@asynccontextmanager
async def _system(
    settings: Settings, workers: int, devices: str, console: Console
) -> AsyncIterator[Client]:
    """Give a client of the system that runs here; start one where none does."""
    if settings.nats is not None or discovery.read_note(settings.store) is not None:
        url = settings.nats or discovery.server_url(settings.store)
        async with Client.connect(url, namespace=settings.namespace) as client:
            yield client
        return
    slots = [] if _on_gpu(devices) else ["--slots", str(workers)]
    program = ["worker", "gpu", "--quiet", "--devices", devices, *slots]
    async with running(settings, installed(), workers=[program]) as system:
        where = "GPUs" if _on_gpu(devices) else f"the CPU, {workers} workers (no GPU is used)"
        console.print(
            f"NATS {discovery.shown(system.nats)} · HTTP {', '.join(system.http)}"
            f" · training on {where}",
            soft_wrap=True,
        )
        yield system.client


def _run(
    settings: Settings,
    begin: Any,
    workers: int,
    devices: str,
    out: Path,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    console = Console(stderr=as_json, highlight=False)

    async def main() -> int:
        async with _system(settings, workers, devices, console) as client:
            state = await begin(client)
            if detach:
                click.echo(state.model_dump_json())
                return 0
            interrupted = False
            async with anyio.create_task_group() as tasks:

                async def stop_on_signal() -> None:
                    nonlocal interrupted
                    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                        async for _ in signals:
                            interrupted = True
                            tasks.cancel_scope.cancel()
                            return

                tasks.start_soon(stop_on_signal)
                state = await follow(client, state, console)
                written = await write_reports(client, state.tag, out / state.tag)
                for path in written:
                    console.print(f"wrote {path}", markup=False)
                if as_json:
                    click.echo(state.model_dump_json())
                tasks.cancel_scope.cancel()
            if interrupted:
                await _interrupted(client, state.tag, console)
                return 130
        return 0

    sys.exit(options.run(main))


async def _interrupted(client: Client, tag: str, console: Console) -> None:
    """Propose nothing more; what runs goes back into the queue when the workers end."""
    with anyio.move_on_after(1.5):
        try:
            await client.call("loop.pause", {"tag": tag}, timeout=1)
        except TrineError as error:
            console.print(f"not paused: {error.message}", markup=False)
    console.print(f"interrupted; go on with: trine loop resume {tag}", markup=False)
