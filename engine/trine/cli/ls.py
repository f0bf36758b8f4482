"""``trine ls``: what is there."""

import json
import time
from typing import Any

import click

from trine import catalogue, trigger
from trine.cli import options
from trine.client import Client

_WHAT = ["functions", "triggers", "workers", "jobs"]


@click.command()
@click.argument("what", type=click.Choice(_WHAT), default="functions")
@options.place
@click.option("--schema", is_flag=True, help="With the schemas of input and output.")
@options.as_json
def ls(
    what: str,
    schema: bool,
    as_json: bool,
    place: options.Place,
) -> None:
    """List the functions, triggers or workers that are there now, or the jobs that wait."""

    async def main(client: Client) -> None:
        rows = await _rows(client, what, schema or as_json)
        if as_json:
            click.echo(json.dumps(rows))
        elif not rows:
            click.echo(f"no {what}", err=True)
        else:
            _table(rows)

    options.with_client(main, place)


async def _rows(client: Client, what: str, full: bool) -> list[dict[str, Any]]:
    bus = client.bus
    if what == "workers":
        now = time.time()
        return [
            {
                "worker": info.id,
                "host": info.host,
                "pid": info.pid,
                "up_seconds": round(now - info.started_at),
                "apps": ",".join(info.apps),
            }
            for info in await catalogue.workers(bus)
        ]
    if what == "jobs":
        info = await bus.api(f"STREAM.INFO.{bus.names.jobs}", {"subjects_filter": ">"})
        queues: dict[tuple[str, str], int] = {}
        for subject, count in (info["state"].get("subjects") or {}).items():
            queue, requirement = subject.split(".")[2:4]
            queues[queue, requirement] = queues.get((queue, requirement), 0) + count
        return [
            {"queue": queue, "requirement": requirement, "jobs": count}
            for (queue, requirement), count in sorted(queues.items())
        ]
    functions = (await catalogue.functions(bus)).values()
    if what == "triggers":
        return [
            {"kind": b.kind, "function": b.function, "config": json.dumps(b.config), "id": b.id}
            for info in functions
            for b in info.bindings
        ] or [{"kind": kind, "function": "", "config": "", "id": ""} for kind in trigger.kinds()]
    if full:
        return [info.model_dump(mode="json", exclude={"bindings"}) for info in functions]
    return [{"function": info.id, "does": info.doc.partition("\n")[0]} for info in functions]


def _table(rows: list[dict[str, Any]]) -> None:
    cells = [[str(value) for value in row.values()] for row in rows]
    head = [name.upper().replace("_", " ") for name in rows[0]]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    for row in [head, *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())
