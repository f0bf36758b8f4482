"""Options that several commands share, and how a command runs."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click

from trine import logs
from trine.client import Client
from trine.settings import Settings

T = TypeVar("T")

nats = click.option("--nats", metavar="URL", help="The NATS server; several, joined by commas.")
namespace = click.option("--namespace", help="Prefix of every subject and stream [trine].")
store = click.option(
    "--store", type=click.Path(path_type=Path), help="Data of the embedded server [.trine]."
)
log_level = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]"
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def connection(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options by which a command finds its system."""
    for option in (store, namespace, nats):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Place:
    """Where the system is that a command talks to, as its options say."""

    nats: str | None
    namespace: str | None
    store: Path | None


def place(command: Callable[..., T]) -> Callable[..., T]:
    """Add the same options, and hand them to the command as ``place``."""

    @functools.wraps(command)
    def with_place(nats: str | None, namespace: str | None, store: Path | None, **rest: Any) -> T:
        return command(place=Place(nats, namespace, store), **rest)

    return connection(with_place)


def settings(**flags: Any) -> Settings:
    """Read the environment and the flags, and set up logging by them."""
    loaded = Settings.load(**flags)
    logs.configure(loaded.log_level)
    return loaded


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run *main* on uvloop."""
    return anyio.run(main, backend_options={"use_uvloop": True})


def with_client(main: Callable[[Client], Awaitable[T]], place: Place) -> T:
    """Run *main* with a client of the system at *place*."""
    from trine import discovery

    flags = settings(**asdict(place), log_level="warning")

    async def connected() -> T:
        url = flags.nats or discovery.server_url(flags.store)
        async with Client.connect(url, namespace=flags.namespace, name="trine-cli") as client:
            return await main(client)

    return run(connected)
