"""Replicas of a trigger that run without functions: what they fire is kept, with who fired it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from pydantic import BaseModel

from trine import streams
from trine.client import Client
from trine.payload import encode as encode_payload
from trine.retry import Retry
from trine.serving.supervise import supervise
from trine.testing.serving import server
from trine.trigger import Binding, Trigger, TriggerContext

FUNCTION = "conformance.probe"


class ProbeError(Exception):
    """What a function raises that is told to fail."""


@dataclass(frozen=True, slots=True)
class Fire:
    """One run that a trigger asked for."""

    replica: int
    payload: Any
    attempt: int

    @property
    def fields(self) -> Any:
        """The payload as JSON has it, to compare and to show."""
        if isinstance(self.payload, BaseModel):
            return self.payload.model_dump(mode="json")
        return self.payload


@dataclass(frozen=True, slots=True)
class Probe:
    """The function that a trigger under test is bound to, as far as a trigger may know it."""

    id: str = FUNCTION
    retry: Retry | None = field(default_factory=lambda: Retry(attempts=5, delay_seconds=0.05))

    def encode(self, value: Any) -> bytes:
        return encode_payload(value)


class Bench:
    """Runs replicas of one trigger on a real server and records what they fire."""

    def __init__(self, url: str, trigger: Trigger) -> None:
        self._url = url
        self.trigger = trigger
        self.fires: list[Fire] = []
        self.fail_next = 0  # so many of the runs that come now fail
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def context(self, number: int = 0) -> AsyncIterator[TriggerContext]:
        """Give the context of one replica, on a connection of its own."""
        async with Client.connect(self._url, namespace="conformance") as client:
            await streams.ensure(client.bus)
            binding = Binding(self.trigger, Probe())

            async def run(  # with the names of `trine.trigger.Run`
                sent: Any,
                trigger: str,  # noqa: ARG001
                attempt: int,
                facts: dict[str, Any],  # noqa: ARG001
                headers: Mapping[str, str] | None = None,  # noqa: ARG001
            ) -> Any:
                self.fires.append(Fire(number, sent, attempt))
                self._arrived.set()
                await anyio.lowlevel.checkpoint()
                if self.fail_next > 0:
                    self.fail_next -= 1
                    raise ProbeError("the function was told to fail")
                return None

            yield TriggerContext(
                binding=binding,
                client=client,
                stopping=anyio.Event(),
                siblings=frozenset({binding.id}),
                run_function=run,
            )

    async def wait(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until *reached* holds; AssertionError says *what* did not happen."""
        try:
            async with asyncio.timeout(seconds):
                while not reached():
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"{what} within {seconds:g} s; fired: {self.shown()}") from None

    def shown(self) -> str:
        return ", ".join(f"replica {one.replica}: {one.fields!r:.100}" for one in self.fires) or "-"


async def start(
    context: TriggerContext, number: int, *, placed: bool = True
) -> "asyncio.Task[None]":
    """Run the trigger of *context*: as a worker does, or, not *placed*, its `run` alone."""
    run = (
        supervise(context, f"replica-{number}") if placed else context.binding.trigger.run(context)
    )
    return asyncio.create_task(run, name=f"trigger of replica {number}")


async def end(task: "asyncio.Task[None]", seconds: float, what: str) -> None:
    """Wait for *task*; AssertionError when it goes on, or failed."""
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise AssertionError(f"{what}: still running after {seconds:g} s")
    if not task.cancelled() and (error := task.exception()) is not None:
        raise AssertionError(f"{what}: it ended with {error!r}") from error


def in_own_loop(check: Callable[[str], Coroutine[Any, Any, None]], seconds: float) -> None:
    """Run ``check(url)`` on a fresh server in a thread; raise what it raises, and never hang.

    A trigger that cannot be stopped stays behind in its thread, which ends with the process.
    """
    ended = threading.Event()
    failed: list[BaseException] = []

    async def main() -> None:
        try:
            async with server() as url:
                await check(url)
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            ended.set()

    def run() -> None:
        try:
            anyio.run(main)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
            if not failed:
                failed.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="trigger conformance", daemon=True)
    thread.start()
    if not ended.wait(seconds):
        raise AssertionError(f"the check did not end within {seconds:g} s")
    thread.join(1 if failed else 5)
    if failed:
        raise _first(failed[0])
    if thread.is_alive():
        raise AssertionError("something that the trigger started cannot be stopped")


def _first(error: BaseException) -> BaseException:
    """The one error inside of groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
