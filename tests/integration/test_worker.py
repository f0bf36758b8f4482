"""The worker: real programs under real faults, over a real server."""

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from trine import catalogue
from trine_functions.contracts import Experiment

pytestmark = pytest.mark.anyio
WORKER = ("worker", "gpu", "--devices", "cpu", "--quiet")
LONG_RUN = """
import os, time
open(os.environ["TRINE_MARK"] if "TRINE_MARK" in os.environ else "mark", "w").close()
print("step 00001 (1.0%) | loss: 3.00", flush=True)
time.sleep(6)
print("val_bpb: 1.5")
"""


def training(one: Experiment) -> bool:
    return one.phase == "running" and one.attempt > 0


async def test_a_submitted_change_is_trained_and_recorded(lab: Any, trine: Any) -> None:
    async with (
        lab() as it,
        trine.start(*WORKER, "--json", TRINE_CACHE=str(trine.directory)) as program,
    ):
        said = await program.line()
        present = {info.id: info.apps for info in await catalogue.workers(it.client.bus)}
        assert present[said["worker"]] == [f"train on {said['slot']}"]
        tag = await it.tag("plain")
        one = await it.submit(tag, knobs={"LR": 0.01}, hypothesis="a smaller rate")
        record = await it.ended(one)
        assert record.status == "keep"
        assert record.val_bpb == pytest.approx(1.05)
        assert record.peak_vram_mb == 12.5
        assert record.attempt == 1
        assert record.gpu_id.endswith("cpu-0")
        assert record.log is not None
        assert b"val_bpb: 1.05" in await it.client.objects.get(record.log)
        assert not list((trine.directory / "attempts").glob("*")), "the attempt left files behind"


async def test_whole_files_can_be_submitted_but_protected_ones_cannot(lab: Any, trine: Any) -> None:
    from trine.errors import InvalidInputError

    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("files", files={"train.py": "print('val_bpb: 2')", "ground.py": ""})
        with pytest.raises(InvalidInputError, match=r"ground\.py.*protected"):
            await it.submit(tag, files={"ground.py": "cheat"})
        with pytest.raises(InvalidInputError, match="relative path"):
            await it.submit(tag, files={"../out.py": "x"})
        one = await it.submit(tag, files={"train.py": "print('val_bpb: 1.25')"})
        assert (await it.ended(one)).val_bpb == 1.25


@pytest.mark.parametrize(
    ("source", "crash_class", "says"),
    [
        ("import sys\nfor i in range(80): print('line', i)\nsys.exit(3)", "error", "exit code 3"),
        ("raise MemoryError", "oom", "MemoryError"),
        ("print('FAIL: loss is nan'); raise SystemExit(1)", "nan", "exit code 1"),
        ("print('val_bpb: nan')", "nan", "val_bpb is nan"),
        ("print('hello')", "no_metric", "no line `val_bpb"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "signal 9"),
        ("import torch_is_missing_here", "error", "No module named"),
    ],
)
async def test_a_program_that_fails_is_a_crash_with_its_reason(
    lab: Any, trine: Any, source: str, crash_class: str, says: str
) -> None:
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("bad", source)
        record = await it.ended(await it.submit(tag))
        assert (record.status, record.crash_class) == ("crash", crash_class)
        assert says in (record.error or "")
        if crash_class == "error" and "line" in source:
            lines = (record.error or "").splitlines()[1:]
            assert lines == [f"line {i}" for i in range(30, 80)], "the last 50 lines, in order"


async def test_a_command_that_cannot_be_run_is_a_crash_that_names_it(lab: Any, trine: Any) -> None:
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("absent", command="no-such-program --x")
        record = await it.ended(await it.submit(tag))
        assert (record.status, record.crash_class) == ("crash", "refused")
        assert "no-such-program" in (record.error or "")


async def test_a_program_that_hangs_is_killed_with_its_children(lab: Any, trine: Any) -> None:
    source = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("hang", source, budget_seconds=0.5, startup_seconds=1)
        record = await it.ended(await it.submit(tag))
        assert (record.status, record.crash_class) == ("crash", "timeout")
        pid = int((record.error or "").split("child ")[1].split()[0])
        assert not _alive(pid)


async def test_a_program_that_prints_100_mb_is_kept_in_bounds(lab: Any, trine: Any) -> None:
    source = (
        "import sys\n"
        "for _ in range(100): sys.stdout.write('x' * 1_000_000)\n"
        "print('\\nval_bpb: 1.75')\n"
    )
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        record = await it.ended(await it.submit(await it.tag("loud", source)))
        assert record.val_bpb == 1.75
        kept = await it.client.objects.get(record.log)
        assert len(kept) < 20_000_000
        assert b"bytes left out" in kept
        assert kept.endswith(b"val_bpb: 1.75\n")


async def test_a_worker_killed_in_the_middle_loses_nothing(lab: Any, trine: Any) -> None:
    cache = str(trine.directory)
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=cache) as first:
        tag = await it.tag("killed", LONG_RUN)
        one = await it.submit(tag)
        before = await it.until(one, training)
        async with trine.start(*WORKER, TRINE_CACHE=cache):
            await it.slots(2)
            first.signal(signal.SIGKILL)
            after = await it.until(one, lambda record: record.attempt == 2, seconds=20)
            assert after.gpu_id != before.gpu_id
            record = await it.ended(one)
            assert (record.status, record.attempt) == ("keep", 2)
        counters = await it.client.call("report.summary", {"tag": tag})
        assert counters["stats"]["total"] == 1
        assert counters["stats"]["kept"] == 1


async def test_the_late_result_of_a_sleeping_worker_is_refused(lab: Any, trine: Any) -> None:
    cache = str(trine.directory)
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=cache) as sleeper:
        tag = await it.tag("asleep", LONG_RUN)
        one = await it.submit(tag)
        await it.until(one, training)
        async with trine.start(*WORKER, TRINE_CACHE=cache):
            await it.slots(2)
            sleeper.signal(signal.SIGSTOP)  # its program goes on and ends meanwhile
            await it.until(one, lambda record: record.attempt == 2, seconds=25)
            sleeper.signal(signal.SIGCONT)
            record = await it.ended(one)
            assert record.attempt == 2
            assert (await it.client.call("experiment.get", {"experiment_id": one}))["attempt"] == 2
        summary = await it.client.call("report.summary", {"tag": tag})
        assert summary["stats"]["kept"] + summary["stats"]["discarded"] == 1


async def test_a_report_of_an_earlier_attempt_changes_nothing(lab: Any, trine: Any) -> None:
    from trine_functions.contracts import ExperimentFinished, Metrics

    async with lab() as it:
        tag = await it.tag("fenced")
        one = await it.submit(tag)

        def report(attempt: int, value: float) -> ExperimentFinished:
            return ExperimentFinished(
                experiment_id=one,
                tag=tag,
                attempt=attempt,
                gpu_id="g",
                outcome="success",
                metrics=Metrics(val_bpb=value),
            )

        said = await it.client.call("experiment.settle", report(7, 0.5))
        assert "lost it to attempt 0" in said["refused"]
        async with trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
            record = await it.ended(one)
        again = await it.client.call("experiment.settle", report(1, record.val_bpb))
        assert again["status"] == "keep"
        other = await it.client.call("experiment.settle", report(1, 0.5))
        assert "ended as keep already" in other["refused"]


async def test_sigterm_hands_the_run_back_at_once(lab: Any, trine: Any) -> None:
    cache = str(trine.directory)
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=cache) as first:
        tag = await it.tag("drained", LONG_RUN)
        one = await it.submit(tag)
        await it.until(one, training)
        async with trine.start(*WORKER, TRINE_CACHE=cache):
            await it.slots(2)
            first.signal(signal.SIGTERM)
            assert await first.wait(5) == 0
            await it.until(one, lambda record: record.attempt == 2, seconds=5)
            assert (await it.ended(one)).status == "keep"
        pool = await it.client.call("pool.list")
        assert pool["offline"] >= 1


async def test_an_experiment_that_kills_its_workers_is_given_up(lab: Any, trine: Any) -> None:
    """Each attempt kills the worker itself; the third worker's successor records the loss."""
    source = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    from trine_functions.contracts import experiments

    async with lab() as it:
        tag = await it.tag("poison", source)
        one = await it.submit(tag)
        entry = await it.client.state(experiments).get(one)
        spent = entry.value.model_copy(update={"attempt": 3})  # three workers died on it
        await it.client.state(experiments).replace(entry, spent)
        async with trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
            record = await it.ended(one)
        assert (record.status, record.crash_class) == ("crash", "lost")


async def test_progress_arrives_while_the_program_runs(lab: Any, trine: Any) -> None:
    from trine_functions.contracts import ExperimentProgress

    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("progress", budget_seconds=1.5)
        send, receive = anyio.create_memory_object_stream[Any](100)
        names = it.client.bus.names
        pattern = names.event("experiment.progress", "*", "*")
        listener = await it.client.bus.connection.listen(pattern, send.send_nowait)
        one = await it.submit(tag)
        with anyio.fail_after(20):
            event = ExperimentProgress.model_validate_json((await receive.receive()).data)
        assert event.experiment_id == one
        assert event.loss is not None
        assert event.tokens_per_second == 1000
        current = await it.client.call("experiment.get", {"experiment_id": one})
        assert current["status"] == "running", "it came before the run had ended"
        await it.ended(one)
        await listener.close()
    send.close()
    receive.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
