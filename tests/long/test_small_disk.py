"""A disk that is really full: a small one, mounted in a user namespace."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from trine import Client, Scope, streams
from trine.embedded import server_program
from trine.errors import TrineError, UnavailableError

pytestmark = [pytest.mark.anyio, pytest.mark.long]
PIECE = "x" * 100_000
values = Scope("values", str)

# A server on a small disk of its own; when it is ended it comes back, and the disk has grown.
SMALL_DISK = """
mount -t tmpfs -o size=8m none "$1" || exit 1
"$0" -c "$2"
mount -o remount,size=64m none "$1"
exec "$0" -c "$2"
"""


async def reach(url: str) -> None:
    """Wait until a server accepts connections on *url*."""
    with anyio.fail_after(15):
        while True:
            try:
                async with Client.connect(url):
                    return
            except UnavailableError:
                await anyio.lowlevel.checkpoint()


async def fill(client: Client) -> int:
    """Write until nothing more is taken; return how many pieces were acknowledged."""
    for written in range(1000):
        try:
            await client.state(values).put(f"k.{written}", PIECE)
        except TrineError as error:
            if "disk" not in error.message:
                raise
            return written
    raise AssertionError("it is never full")


async def test_what_was_acknowledged_survives_and_a_restart_with_room_goes_on(
    tmp_path: Path, own_server: Any
) -> None:
    own_server.kill()  # its port is what is wanted
    disk, config, pid = tmp_path / "disk", tmp_path / "nats.conf", tmp_path / "pid"
    disk.mkdir()
    config.write_text(
        f'listen: 127.0.0.1:{own_server.port}\npid_file: "{pid}"\n'
        f'jetstream {{ store_dir: "{disk}", max_file_store: 1GB, sync_interval: 100ms }}\n'
    )
    shell = ["unshare", "-Urm", "--kill-child", "sh", "-c", SMALL_DISK]
    process = subprocess.Popen([*shell, server_program(), disk, config], stderr=subprocess.DEVNULL)
    try:
        await reach(own_server.url)
        async with Client.connect(own_server.url, namespace="t") as client:
            await streams.ensure(client.bus)
            written = await fill(client)
            assert 20 < written < 90
            assert (await client.state(values).get("k.3")).value == PIECE
            os.kill(int(pid.read_text()), signal.SIGTERM)
        await reach(own_server.url)
        async with Client.connect(own_server.url, namespace="t") as client:
            await streams.ensure(client.bus)
            keys = {entry.key for entry in await client.state(values).entries()}
            assert keys >= {f"k.{n}" for n in range(written)}
            await client.state(values).put("more", PIECE)
            await client.send("any.function", {"n": 1})
    finally:
        process.kill()
        process.wait()
        with suppress(OSError, ValueError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
