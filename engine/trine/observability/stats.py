"""Counts and durations of the runs of one function in one process."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Upper bounds of the histogram, in seconds; what is longer falls into the last bucket.
BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


@dataclass(slots=True)
class Stats:
    """What one function has done here since the process started."""

    runs: int = 0
    errors: int = 0
    running: int = 0
    nanoseconds: int = 0
    last_error: str = ""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    codes: dict[str, int] = field(default_factory=dict)

    def ended(self, nanoseconds: int) -> None:
        """Count a run that has ended, however it ended."""
        self.runs += 1
        self.nanoseconds += nanoseconds
        self.buckets[bisect_left(BOUNDS, nanoseconds / 1e9)] += 1

    def failed(self, code: str, message: str) -> None:
        """Count an error by its code."""
        self.errors += 1
        self.codes[code] = self.codes.get(code, 0) + 1
        self.last_error = f"{code}: {message}"[:200]

    def data(self) -> dict[str, Any]:
        """What the micro protocol's STATS reply says beside its own numbers."""
        said: dict[str, Any] = {"running": self.running}
        if self.runs:
            said["buckets"] = self.buckets
        if self.codes:
            said["codes"] = self.codes
        return said


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """Return the seconds below which *share* of the runs in *buckets* ended; None without runs.

    Within a bucket they are taken as spread evenly; above the last bound it is the bound.
    """
    wanted = share * sum(buckets)
    before = 0
    for number, count in enumerate(buckets):
        if count and before + count >= wanted:
            if number == len(BOUNDS):
                return BOUNDS[-1]
            low = BOUNDS[number - 1] if number else 0.0
            return low + (BOUNDS[number] - low) * (wanted - before) / count
        before += count
    return None
