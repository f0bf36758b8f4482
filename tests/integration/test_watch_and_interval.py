"""The small triggers: files that change, and a beat."""

from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError

from trine import App, Context
from trine_triggers import FileChange, Interval, IntervalTick, Watch

pytestmark = pytest.mark.anyio


class Files:
    def __init__(self, trigger: Watch) -> None:
        self.seen: list[tuple[str, str]] = []
        self._changed = anyio.Event()
        self.app = App("files")

        async def note(change: FileChange) -> None:
            self.seen.append((Path(change.path).name, change.change))
            self._changed.set()

        self.app.on(trigger)(self.app.function("files.note")(note))

    async def wait(self, *wanted: tuple[str, str]) -> None:
        with anyio.fail_after(10):
            while not set(wanted) <= set(self.seen):
                self._changed = anyio.Event()
                await self._changed.wait()


async def ready(files: Files, probe: Path) -> None:
    """Write until the trigger sees it: ``each`` triggers start beside their worker."""
    with anyio.fail_after(10):
        number = 0
        while not files.seen:
            number += 1
            probe.write_text("x" * number)
            await anyio.sleep(0.05)


async def test_files_of_a_directory_are_seen_to_come_change_and_go(serve, tmp_path):
    files = Files(Watch(tmp_path, "*.csv", poll_seconds=0.05))
    (tmp_path / "old.csv").write_text("1")
    async with serve(files.app):
        await ready(files, tmp_path / "probe.csv")
        (tmp_path / "new.csv").write_text("1")
        (tmp_path / "new.txt").write_text("1")
        (tmp_path / "below.csv").mkdir()
        await files.wait(("new.csv", "created"))
        (tmp_path / "new.csv").write_text("22")
        await files.wait(("new.csv", "modified"))
        (tmp_path / "new.csv").unlink()
        (tmp_path / "old.csv").unlink()
        await files.wait(("new.csv", "deleted"), ("old.csv", "deleted"))
    assert {name for name, _ in files.seen} == {"probe.csv", "new.csv", "old.csv"}


async def test_one_file_may_come_and_go(serve, tmp_path):
    path = tmp_path / "settings.toml"
    files = Files(Watch(path, on=("created", "deleted"), poll_seconds=0.05))
    async with serve(files.app):
        await ready(files, path)
        path.write_text("changed, which nobody asked for")
        path.unlink()
        await files.wait(("settings.toml", "deleted"))
    assert {change for _, change in files.seen} <= {"created", "deleted"}


async def test_a_pattern_reaches_below_a_directory(serve, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    files = Files(Watch(tmp_path, "**/*.py", poll_seconds=0.05))
    async with serve(files.app):
        await ready(files, tmp_path / "a" / "b" / "x.py")
    assert files.seen[0][0] == "x.py"


async def test_a_beat_comes_from_one_replica_and_from_the_other_when_that_one_has_gone(serve):
    beats: list[str] = []
    changed = [anyio.Event()]
    app = App("heart")

    @app.on(Interval(0.1))
    @app.function("heart.beat")
    async def beat(ctx: Context, tick: IntervalTick) -> None:
        beats.append(ctx.invocation.worker)
        changed[0].set()

    async def until(count: int, workers: int) -> None:
        with anyio.fail_after(20):
            while len(beats) < count or len(set(beats)) < workers:
                changed[0] = anyio.Event()
                await changed[0].wait()

    async with serve(app):
        async with serve(app):
            await until(5, 1)
            assert len(set(beats)) == 1
        await until(8, 1)
    async with serve(app):  # another worker, after the lease was given back
        await until(12, 2)


@pytest.mark.parametrize("seconds", [0, -1, 0.01, 1e12, float("nan")])
def test_a_beat_that_cannot_be_is_refused(seconds):
    with pytest.raises(ValidationError):
        Interval(seconds)


def test_the_small_triggers_are_small():
    folder = Path(__import__("trine_triggers").__file__).parent
    for name in ("watch", "interval"):
        lines = (folder / f"{name}.py").read_text().splitlines()
        assert len(lines) < 70, name
        assert len([line for line in lines if line.strip()]) < 60, name
