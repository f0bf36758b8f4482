"""Reading what a training program prints: progress lines, the summary, the last lines."""

import re
from collections import deque
from dataclasses import dataclass, field

_STEP = re.compile(r"^step\s+(\d+)\s+\(([\d.]+)%\)")
_FACTS = {
    "loss": "loss",
    "tok/sec": "tokens_per_second",
    "mfu": "mfu_percent",
    "remaining": "remaining_seconds",
}
_METRIC = re.compile(r"^([a-zA-Z_]+):\s*(\S+)\s*$")
_METRICS = {
    "val_bpb", "peak_vram_mb", "training_seconds", "total_tokens_m", "mfu_percent", "num_steps",
    "num_params_m", "depth",
}  # fmt: skip
_LINE_LIMIT = 16_384  # bytes of a line that are looked at
TAIL_LINES = 50


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress line."""

    step: int
    share: float  # of the budget, 0 to 1
    facts: dict[str, float]


@dataclass(slots=True)
class Output:
    """What has been printed so far, in bounded memory whatever a program prints."""

    progress: Progress | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> bool:
        """Take in *chunk*; whether it held a new progress line."""
        parts = re.split(rb"[\r\n]", self._rest + chunk)
        self._rest = parts.pop()[-_LINE_LIMIT:]
        new = [self._line(part[:_LINE_LIMIT]) for part in parts]
        return any(new)

    def end(self) -> None:
        """Take in what came without a line end."""
        rest, self._rest = self._rest, b""
        self._line(rest)

    def _line(self, raw: bytes) -> bool:
        line = raw.decode(errors="replace").rstrip()
        if not line:
            return False
        if found := _STEP.match(line):
            self.progress = Progress(int(found[1]), float(found[2]) / 100, _facts(line))
            return True
        self.tail.append(line)
        if (metric := _METRIC.match(line)) and metric[1].lower() in _METRICS:
            try:
                self.metrics[metric[1].lower()] = float(metric[2].replace(",", ""))
            except ValueError:
                self.metrics.pop(metric[1].lower(), None)
        return False


def _facts(line: str) -> dict[str, float]:
    facts = {}
    for part in line.split("|")[1:]:
        name, _, text = part.partition(":")
        field_name = _FACTS.get(name.strip())
        if field_name:
            try:
                facts[field_name] = float(text.strip().rstrip("%sm").replace(",", ""))
            except ValueError:
                continue
    return facts
