"""Running what a page of documentation shows: its files are written, its commands run."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return (language, text) of every fenced block."""
    return BLOCK.findall(text)


def commands(text: str) -> list[tuple[str, str]]:
    """Return (command, what it prints) of a console block."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = f"{command[:-1].rstrip()} {more.lstrip()}"
        found.append((re.sub(r"\s{2,}#.*", "", command), output.strip()))
    return found


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a newcomer: this installation, a cache of their own."""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TRINE_CACHE": str(scratch / "cache")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: str, place: Path, env: dict[str, str], seconds: float = 60) -> str:
    """Return what the command prints; it must succeed."""
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout.strip()


def start(
    arguments: list[str], place: Path, env: dict[str, str], ready: str
) -> "subprocess.Popen[str]":
    """Start ``trine`` with *arguments* and return when it has printed a line with *ready*."""
    program = subprocess.Popen(
        [sys.executable, "-m", "trine", *arguments],
        cwd=place,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdout is not None
    for line in program.stdout:
        if ready in line:
            return program
    program.communicate()
    raise AssertionError(f"trine {' '.join(arguments)} ended with {program.returncode}")


def beside(command: str, place: Path, env: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a command that ends in ``&`` as a shell would, in a process group of its own."""
    return subprocess.Popen(
        ["bash", "-c", command.rstrip("& ")],
        cwd=place,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def stop(program: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(program.pid) == program.pid:
            os.killpg(program.pid, signal.SIGTERM)
    program.send_signal(signal.SIGINT)
    try:
        program.communicate(timeout=10)
    finally:
        program.kill()
