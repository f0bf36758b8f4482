"""A whole system in one process: server, functions, gateway, and worker programs beside it."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup, TaskStatus

from trine import discovery, streams
from trine import trigger as triggers
from trine.app import App
from trine.bindings import BindingHost
from trine.bindings import app as trigger_app
from trine.catalogue.directory import Directory
from trine.client import Client
from trine.embedded import die_with_parent, nats_server
from trine.middleware import Middleware
from trine.serving.worker import Worker
from trine.settings import Settings
from trine.transport.connection import connect
from trine.trigger import GatewayContext

log = structlog.get_logger("trine")

_CHILD_SECONDS = 4.0  # for a worker program to hand its work back and end


@dataclass(slots=True)
class System:
    """What runs: its client, where it can be reached, and the programs beside it."""

    client: Client
    nats: str
    http: list[str] = field(default_factory=list)
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)


@asynccontextmanager
async def running(
    settings: Settings,
    apps: Sequence[App],
    *,
    gateway: bool = True,
    workers: Sequence[Sequence[str]] = (),
    middleware: Sequence[Middleware] = (),
) -> AsyncIterator[System]:
    """Run *apps*, the gateways, and a ``trine`` program for each argument list in *workers*.

    *middleware* runs around the functions of *apps*.

    Without ``settings.nats`` the server is a child of this process. On leaving, work that runs is
    ended or handed back, in the order workers, gateway, functions, server.
    """
    async with AsyncExitStack() as stack:
        url = settings.nats
        if url is None:
            url = await stack.enter_async_context(nats_server(settings.store, settings.durability))
        connection = await stack.enter_async_context(connect(url, "trine-engine"))
        client = Client.over(connection, settings.namespace)
        await streams.ensure(client.bus)
        system = System(client, url)
        async with anyio.create_task_group() as tasks:
            worker = Worker(
                client,
                [*apps, trigger_app],
                middleware=middleware,
                tracebacks=settings.tracebacks,
            )
            await tasks.start(worker.run)
            edge = anyio.CancelScope()
            await tasks.start(_edge, system, worker, settings, gateway, edge)
            try:
                if settings.nats is None:
                    _note(settings, system)
                system.children += [_start(arguments, settings, url) for arguments in workers]
                yield system
            finally:
                with anyio.CancelScope(shield=True):
                    await stop_children(system.children)
                edge.cancel()
                worker.stop()
                if settings.nats is None:
                    (settings.store / discovery.NOTE).unlink(missing_ok=True)
                tasks.cancel_scope.deadline = anyio.current_time() + 2


def _note(settings: Settings, system: System) -> None:
    facts = {
        "pid": os.getpid(),
        "nats": system.nats,
        "http": system.http,
        "namespace": settings.namespace,
    }
    discovery.write_note(settings.store, facts)


async def _edge(
    system: System,
    worker: Worker,
    settings: Settings,
    gateway: bool,
    scope: anyio.CancelScope,
    *,
    task_status: TaskStatus[None],
) -> None:
    """Run what follows the catalogue: bindings that are data, and every kind with a gateway."""
    with scope:
        async with anyio.create_task_group() as tasks:
            directory = Directory(system.client.bus)
            await tasks.start(directory.run)
            await tasks.start(BindingHost(system.client, worker.id, directory).run)
            for cls in triggers.loaded() if gateway else ():
                if cls.placement == "gateway" and "gateway" in vars(cls):
                    await _start_gateway(tasks, cls, system, worker, settings, directory)
            task_status.started()


async def _start_gateway(
    tasks: TaskGroup,
    cls: type[triggers.Trigger],
    system: System,
    worker: Worker,
    settings: Settings,
    directory: Directory,
) -> None:
    async def run(*, task_status: TaskStatus[str]) -> None:
        context = GatewayContext(
            system.client,
            directory,
            worker.call,
            settings.host,
            settings.port,
            task_status.started,
        )
        await cls.gateway(context)

    system.http.append(await tasks.start(run))


def _start(arguments: Sequence[str], settings: Settings, url: str) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "TRINE_NATS": url,
        "TRINE_NAMESPACE": settings.namespace,
        "TRINE_STORE": str(settings.store),
        "TRINE_LOG_LEVEL": settings.log_level,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "trine", *arguments],
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches us; we end the others in order
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl
    )


async def stop_children(
    children: Sequence["subprocess.Popen[bytes]"], seconds: float = _CHILD_SECONDS
) -> None:
    """Ask every program to end, wait a moment, then kill what is left."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    with anyio.move_on_after(seconds):
        while any(child.poll() is None for child in children):  # noqa: ASYNC110 - a Popen has no event
            await anyio.sleep(0.02)
    for child in children:
        if child.poll() is None:
            log.warning("worker_killed", pid=child.pid)
            child.kill()
        child.wait()
