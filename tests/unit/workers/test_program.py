"""Running programs under limits."""

from pathlib import Path

import anyio
import pytest

from trine.errors import BadRequestError
from trine_workers import devices, program
from trine_workers.program import Exit, Log

pytestmark = pytest.mark.anyio


async def run(tmp_path: Path, source: str, seconds: float = 20) -> tuple[Exit, bytes]:
    (tmp_path / "p.py").write_text(source)
    log = Log(tmp_path / "log")
    try:
        ended = await program.run(
            "python p.py",
            cwd=tmp_path,
            extra={"GIVEN": "yes"},
            log=log,
            on_output=lambda chunk: None,
            limit_seconds=seconds,
        )
    finally:
        log.close()
    return ended, (tmp_path / "log").read_bytes()


async def test_the_exit_code_and_all_output_are_kept(tmp_path: Path) -> None:
    source = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    ended, log = await run(tmp_path, source)
    assert (ended.ended, ended.code) == ("exit", 7)
    assert sorted(log.split()) == [b"err", b"out"]


async def test_the_program_sees_an_allow_list_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    _, log = await run(tmp_path, "import os; print(sorted(os.environ))")
    assert b"SECRET_TOKEN" not in log
    assert b"GIVEN" in log


async def test_out_of_time_ends_the_whole_group(tmp_path: Path) -> None:
    source = (
        "import subprocess, sys, time\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        "print(c.pid, flush=True); time.sleep(99)"
    )
    ended, log = await run(tmp_path, source, seconds=1.5)
    assert ended.ended == "timeout"
    child = int(log)
    with anyio.fail_after(5):
        while alive(child):  # init reaps the orphan in its own time
            await anyio.lowlevel.checkpoint()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_a_child_that_holds_the_pipe_does_not_hold_up_the_end(tmp_path: Path) -> None:
    source = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
        "print('done')"
    )
    with anyio.fail_after(10):
        ended, log = await run(tmp_path, source, seconds=60)
    assert ended.ended == "exit"
    assert log == b"done\n"


async def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    with pytest.raises(BadRequestError, match="no-such-program"):
        await program.run(
            "no-such-program --x",
            cwd=tmp_path,
            extra={},
            log=log,
            on_output=lambda chunk: None,
            limit_seconds=5,
        )
    log.close()


def test_the_cpu_is_a_device_when_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", list)
    (one,) = devices.select("auto")
    assert (one.kind, one.name) == ("cpu", "CPU")
    assert one.memory_mb > 100
    with pytest.raises(BadRequestError, match="no GPU '0'"):
        devices.select("0")


def test_two_hosts_never_share_the_id_of_a_slot() -> None:
    one = devices.Device(0, "H200", 143_000, "GPU-1")
    assert "GPU-1" in one.slot_id(0)
    assert one.slot_id(0) != one.slot_id(1)
    other = devices.Device(1, "H200", 143_000, "GPU-2")
    seen, seen_other = one.environment(Path("c")), other.environment(Path("c"))
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert seen["TORCHINDUCTOR_CACHE_DIR"] == seen_other["TORCHINDUCTOR_CACHE_DIR"]
