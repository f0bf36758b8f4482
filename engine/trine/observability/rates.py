"""What happened between two readings of a system."""

from collections.abc import Sequence
from dataclasses import dataclass

from trine.observability.readings import FunctionReading, Reading
from trine.observability.stats import quantile


@dataclass(frozen=True, slots=True)
class FunctionRate:
    """What all workers together did for one function; None where that is not known."""

    function: str
    workers: int
    running: int
    runs: int  # since the workers started
    errors: int
    rate: float | None  # runs a second between the readings
    errors_rate: float | None
    p50_seconds: float | None
    p99_seconds: float | None


def rates(before: Reading | None, now: Reading) -> list[FunctionRate]:
    """Return every function, the busiest first.

    A worker that is not in *before*, because it was not there or did not answer, adds nothing yet.
    """
    known = {(one.function, one.worker): one for one in before.functions} if before else {}
    seconds = max(now.at - before.at, 1e-9) if before else None
    grouped: dict[str, list[FunctionReading]] = {}
    for one in now.functions:
        grouped.setdefault(one.function, []).append(one)
    found = [_rate(name, of, known, seconds) for name, of in grouped.items()]
    return sorted(found, key=lambda one: (-(one.rate or 0.0), -one.running, one.function))


def _rate(
    function: str,
    readings: Sequence[FunctionReading],
    known: dict[tuple[str, str], FunctionReading],
    seconds: float | None,
) -> FunctionRate:
    pairs = [(known.get((one.function, one.worker), one), one) for one in readings]
    buckets = [0] * max(len(one.buckets or ()) for one in readings)
    for old, new in pairs:
        if old.buckets is not None and new.buckets is not None:
            for number, (a, b) in enumerate(zip(old.buckets, new.buckets, strict=True)):
                buckets[number] += max(0, b - a)
    runs = sum(max(0, new.runs - old.runs) for old, new in pairs)
    errors = sum(max(0, new.errors - old.errors) for old, new in pairs)
    return FunctionRate(
        function=function,
        workers=len(readings),
        running=sum(one.running for one in readings),
        runs=sum(one.runs for one in readings),
        errors=sum(one.errors for one in readings),
        rate=runs / seconds if seconds else None,
        errors_rate=errors / seconds if seconds else None,
        p50_seconds=quantile(buckets, 0.5),
        p99_seconds=quantile(buckets, 0.99),
    )
