"""``trine loop`` as a person runs it: a whole system in one command, ended at any moment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

ARGUMENTS = ["--budget", "0.3", "--workers", "2", "--devices", "cpu", "--port", "0"]


@pytest.fixture
def place(tmp_path: Path, quick_source: str) -> Path:
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "train.py").write_text(quick_source)
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "TRINE_CACHE": str(place / "cache")}


def start(place: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "trine", "loop", *arguments],
        cwd=place,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_until(stream: IO[str] | None, text: str) -> str:
    """Read lines until one contains *text*; the test's own timeout is the deadline."""
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} did not come; there was:\n{seen}")


def processes_of(place: Path) -> list[str]:
    """Return the command lines of all processes that work below *place*."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            inside = (directory / "cwd").readlink().is_relative_to(place)
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            server = str(place) in command
            state = (directory / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if (inside or server) and state != "Z":
            found.append(command)
    return found


def test_a_loop_runs_to_its_end_and_writes_its_reports(place: Path) -> None:
    program = start(place, "start", "--target", "quick", "--experiments", "5", *ARGUMENTS)
    out, _ = program.communicate(timeout=50)
    assert program.returncode == 0, out
    assert "no GPU is used" in out
    assert "kept" in out
    (runs,) = (place / "runs").iterdir()
    assert (runs / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (runs / "report.html").read_text()
    table = (runs / "results.tsv").read_text().splitlines()
    assert len(table) == 6
    assert processes_of(place) == []

    again = start(place, "start", "--target", "quick", "--experiments", "2", *ARGUMENTS)
    out, _ = again.communicate(timeout=50)
    assert again.returncode == 0, out
    assert len(list((place / "runs").iterdir())) == 2, "the second run has a tag of its own"


def test_ctrl_c_ends_everything_and_resume_goes_on(place: Path) -> None:
    long = ["--budget", "3", *ARGUMENTS[2:]]
    program = start(place, "start", "--tag", "t", "--target", "quick", "--experiments", "4", *long)
    read_until(program.stdout, " step ")
    began = time.monotonic()
    os.kill(program.pid, signal.SIGINT)
    out, _ = program.communicate(timeout=20)
    took = time.monotonic() - began
    assert program.returncode == 130, out
    assert "trine loop resume t" in out
    assert took < 5, f"it took {took:.1f} s"
    assert processes_of(place) == []

    program = start(place, "resume", *ARGUMENTS[2:], "--json")
    out, _ = program.communicate(timeout=55)
    assert program.returncode == 0, out
    state = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert (state["tag"], state["status"]) == ("t", "finished")
    assert len((place / "runs" / "t" / "results.tsv").read_text().splitlines()) == 5
    assert processes_of(place) == []


def test_killing_the_command_leaves_no_process_and_resume_goes_on(place: Path) -> None:
    long = ["--budget", "3", *ARGUMENTS[2:]]
    program = start(place, "start", "--tag", "k", "--target", "quick", "--experiments", "3", *long)
    read_until(program.stdout, " step ")
    program.kill()
    program.communicate()
    deadline = time.monotonic() + 10
    while processes_of(place):
        assert time.monotonic() < deadline, processes_of(place)
        os.sched_yield()
    program = start(place, "resume", "k", *ARGUMENTS[2:])
    out, _ = program.communicate(timeout=58)
    assert program.returncode == 0, out


def test_a_target_that_does_not_exist_is_one_line(place: Path) -> None:
    program = start(place, "start", "--target", "nowhere", *ARGUMENTS)
    out, _ = program.communicate(timeout=20)
    assert program.returncode == 3
    assert out.strip() == (
        "error: no target 'nowhere': neither a directory nor one of: nanolm (not_found)"
    )


def test_without_torch_the_extra_to_install_is_named(place: Path) -> None:
    source = "import sys; sys.modules['torch'] = None; from trine.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", source, "loop", "start", *ARGUMENTS],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 1
    assert "pip install 'trine[gpu]'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_that_is_taken_names_the_option(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        program = start(place, "start", "--target", "quick", *ARGUMENTS[:-1], port)
        out, _ = program.communicate(timeout=20)
    assert program.returncode == 1
    assert out.strip() == (
        f"error: port {port} on 127.0.0.1 is taken: choose another with --port (address_in_use)"
    )
    assert processes_of(place) == []
