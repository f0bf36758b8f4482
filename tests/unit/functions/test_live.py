"""The live view: plain lines where no terminal is, a table that fits where there is one."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from trine_functions.contracts import Experiment, ExperimentProgress, LoopState
from trine_functions.live import View, _short
from trine_functions.outcome import Outcome


def experiment(place: int, status: str, value: float | None = None, **more: Any) -> Experiment:
    return Experiment(
        **{
            "id": f"exp-{place}",
            "tag": "t",
            "status": status,
            "val_bpb": value,
            "started_at": f"{place:03}",
            "finished_at": None if status == "running" else f"{place:03}",
            "hypothesis": f"idea {place}",
            **more,
        }
    )


def progress(place: int, share: float, **more: Any) -> ExperimentProgress:
    given = {
        "experiment_id": f"exp-{place}", "tag": "t", "attempt": 1, "gpu_id": "gpu-0", "step": 7,
        "progress": share, "loss": 3.25, "tokens_per_second": 1_640_000.0, "printed_at": share,
    }  # fmt: skip
    return ExperimentProgress(**{**given, **more})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> View:
    return View(Console(file=StringIO(), width=80), "t", 12, 2, clock=clock)


def said(view: View) -> list[str]:
    file = view._console.file
    assert isinstance(file, StringIO)
    lines = file.getvalue().splitlines()
    file.seek(0)
    file.truncate()
    return lines


def test_a_start_and_an_end_are_one_plain_line_each(view: View) -> None:
    baseline = experiment(1, "keep", 1.0)
    with view:
        view.experiments([baseline, experiment(2, "running", phase="queued")])
        assert said(view) == ["#1 keep val_bpb 1.0000 idea 1"]
        running = [baseline, experiment(2, "running")]
        view.experiments(running)
        view.experiments(running)
        assert said(view) == ["#2 running idea 2"]
        view.experiments([baseline, experiment(2, "discard", 1.01), experiment(3, "crash")])
        assert said(view) == [
            "#2 discard val_bpb 1.0100 (+0.0100) idea 2",
            "#3 crash [error] idea 3",
        ]


def test_progress_is_told_at_most_every_five_seconds(view: View, clock: Clock) -> None:
    view.experiments([experiment(1, "running")])
    said(view)
    view.progress(progress(1, 0.1))
    view.progress(progress(1, 0.2))
    assert said(view) == ["#1 10% step 7 loss 3.2500 1.64M tok/s"]
    clock.now += 5
    view.progress(progress(1, 0.3))
    view.progress(progress(9, 0.3))
    assert said(view) == ["#1 30% step 7 loss 3.2500 1.64M tok/s"]
    clock.now += 5
    view.experiments([experiment(1, "keep", 1.0)])
    said(view)
    view.progress(progress(1, 0.4))
    assert said(view) == []


def test_the_reason_of_the_loop_is_told_when_it_changes(view: View) -> None:
    state = LoopState(
        tag="t", status="running", experiments=12, parallel=2, seed=1, started_at="",
        reason="where do we start?",
    )  # fmt: skip
    view.loop(state)
    view.loop(state)
    view.loop(state.model_copy(update={"status": "finished", "reason": ""}))
    assert said(view) == ["t: running: where do we start?", "t: finished"]


def test_text_of_agents_is_neither_markup_nor_control(view: View) -> None:
    hostile = "[red]x[/red] \x1b[2J\nnext [/nonsense]"
    view.experiments([experiment(1, "keep", 1.0, hypothesis=hostile)])
    view.message(hostile)
    clean = "[red]x[/red] [2J next [/nonsense]"
    assert said(view) == [f"#1 keep val_bpb 1.0000 {clean}", clean]


def test_the_summary_says_what_the_improvement_is_worth(view: View) -> None:
    found = [
        experiment(1, "keep", 1.0, operator="baseline"),
        experiment(2, "discard", 1.02, operator="baseline"),
        experiment(3, "keep", 0.9),
    ]
    view.summary(Outcome.of(found))
    lines = said(view)
    assert lines[0] == "t: val_bpb 1.0100 → 0.9000 (10.89 % better)"
    assert "is larger" in lines[1]
    assert lines[2] == "2 kept, 1 discarded, 0 crashed"


def test_the_table_fits_a_small_terminal_and_keeps_what_runs() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80, height=24, color_system=None)
    view = View(console, "t", 99, 2)
    found = [experiment(1, "running")]
    found += [experiment(place, "discard", 1.0 + place / 100) for place in range(2, 60)]
    found += [experiment(60, "running", phase="queued"), experiment(61, "crash")]
    with view:
        view.experiments(found)
        view.progress(progress(1, 0.5))
        view.progress(progress(1, 0.4, printed_at=0.1))  # late: dropped
    drawn = console.render_lines(view._draw(), pad=False)
    rows = ["".join(segment.text for segment in line) for line in drawn]
    assert len(rows) < 24
    assert max(map(len, rows)) <= 80
    assert rows[0].startswith("t · 59/99 done · best 1.0200")
    assert "50%" in rows[3]
    assert "1.64M" in rows[3]
    assert "crash" in rows[-1]
    assert "queued" in rows[-2]


def test_a_terminal_sees_the_table_and_messages() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80, height=24)
    with View(console, "t", 3, 1) as view:
        view.experiments([experiment(1, "keep", 1.0)])
        view.message("a worker joined")
    file = console.file
    assert isinstance(file, StringIO)
    assert "a worker joined" in file.getvalue()
    assert "idea 1" in file.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(7.4, "7"), (1_234, "1.234k"), (999_999, "1000k"), (2.5e9, "2.5G")]
)
def test_speeds_are_short(number: float, text: str) -> None:
    assert _short(number) == text
