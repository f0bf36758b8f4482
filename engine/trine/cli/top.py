"""``trine top``: what the functions and queues of a system do now."""

import json
import time
from dataclasses import asdict
from typing import Any

import anyio
import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trine.cli import options
from trine.cli.up import until_signal
from trine.client import Client
from trine.errors import UnavailableError
from trine.observability import readings
from trine.observability.rates import FunctionRate, rates
from trine.observability.readings import Reading

_AROUND = 8  # lines of a screen that hold neither a function nor a queue


@click.command()
@options.place
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two readings.")
@click.option("--once", is_flag=True, help="Print one table and end.")
@options.as_json
def top(interval: float, once: bool, as_json: bool, place: options.Place) -> None:
    """Show rate, duration, errors and runs of each function, and what waits in the queues.

    Durations are of the runs in the last interval. Ctrl-C ends it; with --json each reading is
    one line.
    """
    if interval <= 0:
        raise click.BadParameter("takes seconds above 0", param_hint="--interval")
    console = Console(highlight=False)
    live = not (once or as_json) and console.is_terminal

    async def follow(client: Client) -> None:
        if not live:
            await _print(client, interval, console, repeat=as_json and not once, as_json=as_json)
            return
        with Live(console=console, screen=True, auto_refresh=False) as screen:
            before: Reading | None = None
            while True:
                now = await _reading(client, before)
                if now is not before or before is None:
                    shown = _screen(before, now, client, limit=console.height - _AROUND)
                    screen.update(shown, refresh=True)
                before = now
                await anyio.sleep(interval)

    async def main(client: Client) -> None:
        async with anyio.create_task_group() as tasks:

            async def end_on_signal() -> None:
                await until_signal()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_on_signal)
            await follow(client)
            tasks.cancel_scope.cancel()

    options.with_client(main, place)


async def _reading(client: Client, before: Reading | None) -> Reading:
    """Return a new reading; the old one while the server is away."""
    try:
        return await readings.read(client.bus)
    except UnavailableError:
        if before is None:
            raise
        return before


async def _print(
    client: Client, interval: float, console: Console, *, repeat: bool, as_json: bool
) -> None:
    before = await readings.read(client.bus)
    while True:
        await anyio.sleep(interval)
        now = await readings.read(client.bus)
        if as_json:
            click.echo(json.dumps(_facts(before, now, client)))
        else:
            console.print(_screen(before, now, client, limit=None))
        if not repeat:
            return
        before = now


def _facts(before: Reading, now: Reading, client: Client) -> dict[str, Any]:
    return {
        "at": round(time.time(), 3),
        "workers": len(now.workers),
        "dead_letters": now.dead_letters,
        "functions": [asdict(one) for one in rates(before, now)],
        "queues": [
            {"queue": queue, "waiting": waiting, "running": running}
            for queue, (waiting, running) in now.queues(client.bus.names.jobs).items()
        ],
    }


# --- the screen ---------------------------------------------------------------------------------


def _screen(before: Reading | None, now: Reading, client: Client, limit: int | None) -> Group:
    """Return the tables; *limit*: how many lines functions and queues may have together."""
    found = rates(before, now)
    queues = [
        (queue, waiting, running)
        for queue, (waiting, running) in now.queues(client.bus.names.jobs).items()
        if waiting or running
    ]
    room = None if limit is None else max(3, limit - min(len(queues), max(3, limit // 3)))
    shown = found[:room]
    counts = (
        (len(now.workers), "worker"),
        (len(found), "function"),
        (now.dead_letters, "dead letter"),
    )
    told = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)
    head = Text(f"{client.bus.names.namespace}: {told}")
    parts: list[Any] = [head, Text(), _functions(shown)]
    if len(shown) < len(found):
        parts.append(Text(f"and {len(found) - len(shown)} more", style="dim"))
    if queues:
        room = None if limit is None else max(3, limit // 3)
        parts += [Text(), _queues(sorted(queues, key=lambda one: -one[1])[:room])]
    return Group(*parts)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(names[0], overflow="ellipsis", no_wrap=True, max_width=34)
    for name in names[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _functions(found: list[FunctionRate]) -> Table:
    table = _table("FUNCTION", "RUNS/S", "P50", "P99", "ERR/S", "NOW", "WORKERS")
    for one in found:
        failing = "red" if one.errors_rate else ""
        table.add_row(
            one.function,
            _number(one.rate),
            _duration(one.p50_seconds),
            _duration(one.p99_seconds),
            Text(_number(one.errors_rate), style=failing),
            str(one.running),
            str(one.workers),
        )
    return table


def _queues(found: list[tuple[str, int, int]]) -> Table:
    table = _table("QUEUE", "WAITING", "RUNNING")
    for queue, waiting, running in found:
        table.add_row(queue, str(waiting), str(running))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if 0 < value < 100 else f"{value:.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
