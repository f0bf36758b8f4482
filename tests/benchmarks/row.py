"""A row of ``bench.json``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    row: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    goal: str
    met: bool
