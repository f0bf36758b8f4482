"""Following the loop of a tag in a terminal until it ends."""

import json
import math
from contextlib import aclosing
from pathlib import Path

import anyio
from rich.console import Console

from trine import Client, Entry
from trine.transport.connection import Msg
from trine_functions.contracts import ExperimentProgress, LoopState, loops
from trine_functions.live import View
from trine_functions.outcome import Outcome
from trine_functions.queries import of_tag

_ENDED = ("finished", "stopped")


async def follow(client: Client, state: LoopState, console: Console) -> LoopState:
    """Show experiments, progress and reasons until the loop has ended; return its last state."""
    tag = state.tag
    send, receive = anyio.create_memory_object_stream[Msg](math.inf)
    listener = await client.bus.connection.listen(
        client.bus.names.events_below("experiment"), send.send_nowait
    )
    try:
        with View(console, tag, state.experiments, state.parallel) as view:
            view.loop(state)
            view.experiments(await of_tag(client, tag))
            async with anyio.create_task_group() as tasks:

                async def show_events() -> None:
                    async for message in receive:
                        kind = (message.headers or {}).get("ce-type")
                        if kind == "experiment.progress":
                            view.progress(ExperimentProgress.model_validate_json(message.data))
                        else:
                            view.experiments(await of_tag(client, tag))

                tasks.start_soon(show_events)
                async with aclosing(client.state(loops).watch()) as changes:
                    async for entry in changes:
                        if isinstance(entry, Entry) and entry.key == tag:
                            state = entry.value
                            view.loop(state)
                            if state.status in _ENDED:
                                break
                tasks.cancel_scope.cancel()
            view.experiments(await of_tag(client, tag))
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            await listener.close()
    view.summary(Outcome.of(await of_tag(client, tag)))
    return state


async def write_reports(client: Client, tag: str, place: Path) -> list[Path]:
    """Write chart, page, table and the full records of a tag below *place*."""
    place.mkdir(parents=True, exist_ok=True)
    chart = await client.call("report.chart", {"tag": tag, "format": "png"}, timeout=60)
    page = await client.call("report.html", {"tag": tag}, timeout=60)
    table = await client.call("report.tsv", {"tag": tag})
    records = [one.model_dump(mode="json") for one in await of_tag(client, tag)]
    contents = {
        "progress.png": await client.objects.get(chart["object"]),
        "report.html": await client.objects.get(page["object"]),
        "results.tsv": (table["tsv"].rstrip("\n") + "\n").encode(),
        "experiments.json": json.dumps(records, indent=1).encode(),
    }
    written = []
    for name, content in contents.items():
        (place / name).write_bytes(content)
        written.append(place / name)
    return written
