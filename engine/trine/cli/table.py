"""How commands print rows: aligned columns for people."""

from typing import Any

import click


def table(rows: list[dict[str, Any]], nothing: str) -> None:
    """Print *rows*, whose keys are the heads of the columns; *nothing* on stderr if there is none.

    None is an empty cell.
    """
    if not rows:
        click.echo(nothing, err=True)
        return
    cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
    head = [name.upper().replace("_", " ") for name in rows[0]]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    for row in [head, *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())
