"""``trine ls``: what is there."""

import json
import time
from typing import Any

import click

from trine import catalogue, trigger
from trine.catalogue import directory
from trine.cli import options
from trine.cli.table import table
from trine.client import Client

_WHAT = ["functions", "triggers", "workers", "jobs"]


@click.command()
@click.argument("what", type=click.Choice(_WHAT), default="functions")
@options.place
@click.option("--schema", is_flag=True, help="With the schemas of input and output.")
@click.option("--queue", metavar="NAME", help="With jobs: each job of this queue or function.")
@options.as_json
def ls(
    what: str,
    schema: bool,
    queue: str | None,
    as_json: bool,
    place: options.Place,
) -> None:
    """List the functions, triggers or workers that are there now, or the jobs that wait."""

    async def main(client: Client) -> None:
        if queue is not None:
            rows = await _jobs(client, queue)
        else:
            rows = await _rows(client, what, schema or as_json)
        if as_json:
            click.echo(json.dumps(rows))
        else:
            table(rows, f"no {what}")

    options.with_client(main, place)


async def _jobs(client: Client, queue: str) -> list[dict[str, Any]]:
    return [
        {
            "job": one.ref,
            "status": one.status,
            "function": one.function or None,
            "at": one.at.isoformat(timespec="seconds"),
        }
        for one in await client.jobs(queue)
    ]


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
    functions = (await directory.functions(bus)).values()
    if what == "triggers":
        return [
            {"kind": b.kind, "function": b.function, "config": json.dumps(b.config), "id": b.id}
            for info in functions
            for b in info.bindings
        ] or [{"kind": kind, "function": "", "config": "", "id": ""} for kind in trigger.kinds()]
    if full:
        return [info.model_dump(mode="json", exclude={"bindings"}) for info in functions]
    return [{"function": info.id, "does": info.doc.partition("\n")[0]} for info in functions]
