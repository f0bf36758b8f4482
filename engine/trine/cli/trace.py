"""``trine trace``: what one cause set off, as a tree."""

import json

import click

from trine.cli import options
from trine.client import Client
from trine.errors import NotFoundError
from trine.observability import traces
from trine.observability.traces import Span


@click.command()
@click.argument("id", metavar="ID")
@options.place
@options.as_json
def trace(id: str, as_json: bool, place: options.Place) -> None:
    """Show the chain that the invocation or trace ID belongs to: what ran where, when, and why.

    The id of a trace is in the `traceparent` of an HTTP reply, both are in the log. Kept for an
    hour. A run that is not listed was not sampled, goes on still, or ran in a worker without
    tracing.
    """

    async def main(client: Client) -> None:
        found = await traces.find(client.bus, id)
        if not found:
            raise NotFoundError(
                f"nothing of {id!r} is recorded: it is older than an hour, was not sampled,"
                " runs still, or ran in a worker without tracing",
                id=id,
            )
        if as_json:
            click.echo(json.dumps([span.model_dump() for span in found]))
        else:
            click.echo("\n".join(lines(found)))

    options.with_client(main, place)


def lines(spans: list[Span]) -> list[str]:
    """Return the trace of *spans*, which are in the order of their start, as text."""
    first = spans[0].started_at
    took = (max(span.ended_at for span in spans) - first) * 1000
    failed = sum(span.outcome != "ok" for span in spans)
    counted = f"{len(spans)} run{'s' if len(spans) > 1 else ''}"
    rows = [
        (
            _stem(last) + branch.span.function,
            f"+{(branch.span.started_at - first) * 1000:.1f} ms",
            f"{branch.span.milliseconds:.1f} ms",
            _cause(branch.span),
            branch.span.worker,
            _end(branch.span),
        )
        for branch, last in traces.walk(traces.tree(spans))
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    shown = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        f"  {row[3]:<{widths[3]}}  {row[4]:<{widths[4]}}  {row[5]}".rstrip()
        for row in rows
    ]
    head = f"trace {spans[0].trace}: {counted} in {took:.1f} ms"
    return [head + (f", {failed} failed" if failed else ""), *shown]


def _stem(last: tuple[bool, ...]) -> str:
    """Return the lines of the tree that lead to a branch; *last*: which above it end there."""
    if len(last) == 1:
        return ""
    above = "".join("   " if ends else "│  " for ends in last[1:-1])
    return above + ("└─ " if last[-1] else "├─ ")


def _cause(span: Span) -> str:
    cause = span.trigger or "call"
    return f"{cause}, attempt {span.attempt}" if span.attempt > 1 else cause


def _end(span: Span) -> str:
    if span.outcome == "ok":
        return ""
    return f"{span.outcome}: {' '.join(span.error.split())}" if span.error else span.outcome
