"""The live view of a loop: a table that redraws itself in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trine_functions.contracts import Experiment, ExperimentProgress, LoopState
from trine_functions.outcome import (
    Outcome,
    against_best_before,
    in_percent,
    one_line,
    what_and_why,
)

_REFRESHES = 4  # a second, at most
_QUIET_SECONDS = 5.0  # between two plain lines on the progress of one experiment
_BAR = 8
_STYLES = {"keep": "bold green", "discard": "dim", "crash": "red", "running": "cyan"}


class View:
    """What a loop does, on *console*. Whatever an agent wrote is shown as text, never as markup.

    Fed by events, in any order and as often as they come; a late or repeated one changes nothing.
    ``with View(...)`` draws where the console is a terminal.
    """

    def __init__(
        self,
        console: Console,
        tag: str,
        total: int,
        parallel: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._tag = tag
        self._total = total
        self._parallel = parallel
        self._clock = clock
        self._live: Live | None = None
        # Replaced as a whole, never changed: the thread that redraws reads them.
        self._experiments: tuple[Experiment, ...] = ()
        self._outcome = Outcome.of(())
        self._state: LoopState | None = None
        self._progress: dict[str, ExperimentProgress] = {}
        self._said: dict[str, str] = {}  # what a plain line has told of an experiment
        self._spoke: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=_REFRESHES,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- what happens --------------------------------------------------------------------------

    def experiments(self, found: list[Experiment]) -> None:
        """Take over every experiment of the tag, in the order of their start."""
        self._outcome = Outcome.of(found)
        self._experiments = tuple(found)
        if self._live is None:
            self._tell(found)

    def progress(self, event: ExperimentProgress) -> None:
        """Show how far a run is; news of an attempt that lost the experiment are dropped."""
        known = self._progress.get(event.experiment_id)
        if known and (known.attempt, known.printed_at) > (event.attempt, event.printed_at):
            return
        self._progress = {**self._progress, event.experiment_id: event}
        if self._live is None:
            self._tell_progress(event)

    def loop(self, state: LoopState) -> None:
        """Show what the loop does now, and why."""
        before, self._state = self._state, state
        self._total, self._parallel = state.experiments, state.parallel
        if self._live is None and (before is None or _doing(before) != _doing(state)):
            self.message(f"{self._tag}: {_doing(state)}")

    def message(self, text: str) -> None:
        """Print one line; above the table where there is one."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def summary(self, outcome: Outcome) -> None:
        """Print what came of it all: baseline to best, what that is worth, and the counts."""
        good = (outcome.improvement_percent or 0) > 0 and not outcome.within_noise
        headline = Text(f"{self._tag}: {outcome.headline}", style="bold green" if good else "bold")
        for line in (headline, Text(outcome.remark), Text(outcome.counts)):
            if line.plain:
                self._console.print(line, soft_wrap=True)

    # --- plain lines ---------------------------------------------------------------------------

    def _tell(self, found: list[Experiment]) -> None:
        differences = against_best_before(found)
        for number, one in enumerate(found, 1):
            state = one.phase if one.status == "running" else one.status
            if state == "queued" or self._said.get(one.id) == state:
                continue
            self._said[one.id] = state
            words = [f"#{number}", state]
            if one.val_bpb is not None:
                words.append(f"val_bpb {one.val_bpb:.4f}")
            if one.id in differences:
                words.append(f"({differences[one.id]:+.4f})")
            if one.status == "crash":
                words.append(f"[{one.crash_class or 'error'}]")
            self.message(f"{' '.join(words)} {what_and_why(one)}")

    def _tell_progress(self, event: ExperimentProgress) -> None:
        numbers = {one.id: number for number, one in enumerate(self._experiments, 1)}
        number = numbers.get(event.experiment_id)
        if number is None or self._experiments[number - 1].status != "running":
            return
        now = self._clock()
        if now - self._spoke.get(event.experiment_id, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        self._spoke[event.experiment_id] = now
        words = [f"#{number}", f"{_share(event):.0%}", f"step {event.step}"]
        if event.loss is not None:
            words.append(f"loss {event.loss:.4f}")
        if event.tokens_per_second is not None:
            words.append(f"{_short(event.tokens_per_second)} tok/s")
        self.message(" ".join(words))

    # --- the table -----------------------------------------------------------------------------

    def _draw(self) -> RenderableType:
        width, height = self._console.size
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("#", justify="right", width=len(str(max(self._total, 100))))
        table.add_column("status", width=_BAR + 5)
        table.add_column("val_bpb", justify="right", width=7)
        table.add_column("loss", justify="right", width=6)
        table.add_column("tok/s", justify="right", width=6)
        table.add_column("what is tried, and why", ratio=1, no_wrap=True, overflow="ellipsis")
        # A header of two lines, the titles, and a line for the cursor leave this much.
        for number, one in self._newest(max(height - 4, 1)):
            table.add_row(*self._row(number, one))
        lines = [
            Text(line, no_wrap=True, overflow="ellipsis", style=style)
            for line, style in ((self._heading(), "bold"), (self._now(), ""))
        ]
        if width < 40:  # nothing of a table is legible there
            return Group(*lines)
        return Group(*lines, table)

    def _heading(self) -> str:
        outcome = self._outcome
        words = [self._tag, f"{outcome.finished}/{self._total} done"]
        if outcome.best is not None:
            words.append(f"best {outcome.best:.4f}")
        if outcome.improvement_percent is not None and outcome.finished > 1:
            words.append(in_percent(outcome.improvement_percent))
        if outcome.crashed:
            words.append(f"{outcome.crashed} crashed")
        return " · ".join(words)

    def _now(self) -> str:
        if self._state is None:
            return f"{self._outcome.running} under way, at most {self._parallel} at once"
        return _doing(self._state)

    def _newest(self, room: int) -> list[tuple[int, Experiment]]:
        """Choose what fits: what runs first, then what ended or waits last, in order of start."""
        numbered = list(enumerate(self._experiments, 1))
        wanted = sorted(
            numbered,
            key=lambda row: (row[1].status == "running" and row[1].phase == "running", row[0]),
        )
        return sorted(wanted[-room:], key=lambda row: row[0])

    def _row(self, number: int, one: Experiment) -> list[Text]:
        event = self._progress.get(one.id) if one.status == "running" else None
        value = "" if one.val_bpb is None else f"{one.val_bpb:.4f}"
        loss = "" if event is None or event.loss is None else f"{event.loss:.3f}"
        speed = event.tokens_per_second if event else None
        style = _STYLES.get(one.status, "")
        return [
            Text(str(number), style="dim"),
            self._status(one, event),
            Text(value, style=style),
            Text(loss),
            Text("" if speed is None else _short(speed)),
            Text(what_and_why(one), style="dim" if one.status == "discard" else ""),
        ]

    def _status(self, one: Experiment, event: ExperimentProgress | None) -> Text:
        if one.status != "running":
            return Text(one.status, style=_STYLES[one.status])
        if one.phase == "queued" or event is None:
            return Text(one.phase, style="dim" if one.phase == "queued" else _STYLES["running"])
        full, empty = ("#", ".") if self._console.options.ascii_only else ("━", "─")
        done = round(_share(event) * _BAR)
        bar = Text(full * done, style=_STYLES["running"])
        return bar.append(empty * (_BAR - done), "dim").append(f" {_share(event):4.0%}", "")


def _doing(state: LoopState) -> str:
    return one_line(f"{state.status}: {state.reason}" if state.reason else state.status)


def _share(event: ExperimentProgress) -> float:
    return min(max(event.progress, 0.0), 1.0)


def _short(number: float) -> str:
    """Write a large number in six characters at most."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"
