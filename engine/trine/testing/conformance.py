"""The conformance suite for triggers: subclass it in a test file, and pytest runs every check.

It needs pytest only to be collected: each check starts a real server and an event loop of its own.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from trine.client import Client
from trine.testing.replicas import Bench, Fire, end, in_own_loop, start
from trine.trigger import Trigger, TriggerContext

_LIMIT_SECONDS = 60.0


class TriggerConformance:
    """What every trigger has to do, whoever wrote it.

    A subclass sets *payload_model*, returns the trigger from `make`, and makes it fire once in
    `provoke`. A trigger that fires by itself, as a clock does, sets *fires_by_itself* and leaves
    `provoke` out; its payloads have to differ from each other. *redelivers* says whether what
    failed comes again: by default what ``placement="shared"`` promises. `self.directory` is an
    empty directory for the check.
    """

    payload_model: ClassVar[type[BaseModel]]
    fires_by_itself: ClassVar[bool] = False
    redelivers: ClassVar[bool | None] = None
    deadline_seconds: ClassVar[float] = 15.0  # for what has to happen
    stop_seconds: ClassVar[float] = 1.0  # for a cancelled trigger to be gone
    settle_seconds: ClassVar[float] = 0.5  # in which a fire too many would come

    directory: Path

    def make(self) -> Trigger:
        """Return the trigger under test, the same each time within one check."""
        raise NotImplementedError

    async def provoke(self, client: Client) -> None:
        """Do what makes the trigger fire once."""
        raise NotImplementedError

    # --- the checks ----------------------------------------------------------------------------

    def test_its_value_survives_json(self) -> None:
        with tempfile.TemporaryDirectory() as place:
            self.directory = Path(place)
            trigger = self.make()
            again = type(trigger).model_validate_json(trigger.model_dump_json())
        assert again == trigger, f"{trigger!r} came back from JSON as {again!r}"
        assert again.model_dump_json() == trigger.model_dump_json()
        assert trigger.model_config.get("frozen"), "a trigger is a frozen model: it is a value"

    def test_it_is_ready_in_time(self) -> None:
        self._check(self._ready)

    def test_it_fires_the_declared_payload(self) -> None:
        self._check(self._fires)

    def test_two_replicas_fire_as_its_placement_says(self) -> None:
        self._check(self._two_replicas)

    def test_it_goes_on_after_a_function_failed(self) -> None:
        self._check(self._goes_on)

    def test_it_stops_when_cancelled(self) -> None:
        self._check(self._cancelled)

    def test_it_ends_when_its_worker_stops(self) -> None:
        self._check(self._stopped)

    # --- how -----------------------------------------------------------------------------------

    async def _ready(self, bench: Bench) -> None:
        async with self._replicas(bench, 1):
            pass

    async def _fires(self, bench: Bench) -> None:
        async with self._replicas(bench, 1) as contexts:
            await self._provoked(contexts[0])
            await bench.wait(
                lambda: bool(bench.fires), self.deadline_seconds, "the trigger did not fire"
            )
        for fire in bench.fires:
            self._fits(fire)

    async def _two_replicas(self, bench: Bench) -> None:
        placement = bench.trigger.placement
        async with self._replicas(bench, 2) as contexts:
            if self.fires_by_itself:
                await self._by_itself(bench, placement)
                return
            each = 2 if placement == "each" else 1
            for round_ in range(1, 4):
                await self._provoked(contexts[round_ % 2])
                await bench.wait(
                    lambda expected=round_ * each: len(bench.fires) >= expected,  # type: ignore[misc]
                    self.deadline_seconds,
                    f"provoked {round_} times, two replicas did not fire {round_ * each} times",
                )
            await asyncio.sleep(self.settle_seconds)
        expected = 3 * each
        assert len(bench.fires) == expected, (
            f"placement {placement!r}: provoked 3 times, two replicas fired {len(bench.fires)}"
            f" times, not {expected}: {bench.shown()}"
        )
        if placement == "each":
            counts = Counter(fire.replica for fire in bench.fires)
            assert counts == {0: 3, 1: 3}, f"each replica fires each time: {bench.shown()}"

    async def _by_itself(self, bench: Bench, placement: str) -> None:
        def enough() -> bool:
            counts = Counter(fire.replica for fire in bench.fires)
            least = min(counts[0], counts[1]) if placement == "each" else len(bench.fires)
            return least >= 3

        await bench.wait(enough, self.deadline_seconds, "two replicas did not fire three times")
        if placement == "single":
            firing = {fire.replica for fire in bench.fires}
            assert len(firing) == 1, f"placement 'single', yet both replicas fire: {bench.shown()}"
        if placement == "shared":
            seen = Counter(repr(fire.fields) for fire in bench.fires if fire.attempt == 1)
            twice = [payload for payload, count in seen.items() if count > 1]
            assert not twice, f"placement 'shared', yet fired more than once: {twice}"

    async def _goes_on(self, bench: Bench) -> None:
        placement = bench.trigger.placement
        redelivers = placement == "shared" if self.redelivers is None else self.redelivers
        async with self._replicas(bench, 1) as contexts:
            bench.fail_next = 1
            await self._provoked(contexts[0])
            await bench.wait(
                lambda: bool(bench.fires), self.deadline_seconds, "the trigger did not fire"
            )
            if redelivers:
                await bench.wait(
                    lambda: any(fire.attempt > 1 for fire in bench.fires),
                    self.deadline_seconds,
                    "the function failed, and was not run again for the same cause",
                )
            before = len(bench.fires)
            await self._provoked(contexts[0])
            await bench.wait(
                lambda: len(bench.fires) > before,
                self.deadline_seconds,
                "the trigger did not fire again after the function had failed",
            )

    async def _cancelled(self, bench: Bench) -> None:
        async with bench.context() as context:
            before = asyncio.all_tasks()
            task = await start(context, 0, placed=False)
            await self._until_ready(context, task)
            task.cancel()
            await end(task, self.stop_seconds, "the trigger was cancelled")
            assert task.cancelled(), "the trigger was cancelled, and kept that to itself"
            await self._nothing_left(before)

    async def _stopped(self, bench: Bench) -> None:
        async with bench.context() as context:
            before = asyncio.all_tasks()
            task = await start(context, 0)
            await self._until_ready(context, task)
            context.stopping.set()
            await end(task, self.deadline_seconds, "its worker stops")
            await self._nothing_left(before)

    @asynccontextmanager
    async def _replicas(self, bench: Bench, count: int) -> AsyncIterator[list[TriggerContext]]:
        """Run replicas as workers do, from when they are ready until all have ended."""
        async with bench.context(0) as first, bench.context(1) as second:
            contexts = [first, second][:count]
            tasks = [await start(context, at) for at, context in enumerate(contexts)]
            try:
                waiting = contexts if bench.trigger.placement != "single" else []
                for context, task in zip(waiting, tasks, strict=False):
                    await self._until_ready(context, task)
                if not waiting:
                    await self._any_ready(contexts)
                yield contexts
            except BaseException:  # what was found says more than how it ends
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=self.stop_seconds)
                raise
            for context in contexts:
                context.stopping.set()
            for task in tasks:
                await end(task, self.deadline_seconds, "its worker stops")

    async def _until_ready(self, context: TriggerContext, task: "asyncio.Task[None]") -> None:
        ready = asyncio.create_task(context.ready.wait())
        done, _ = await asyncio.wait(
            {ready, task}, timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if task in done and not context.ready.is_set():
            error = None if task.cancelled() else task.exception()
            raise AssertionError(f"the trigger ended before it was ready: {error!r}") from error
        if not context.ready.is_set():
            raise AssertionError(f"no ctx.ready.set() within {self.deadline_seconds:g} s")

    async def _any_ready(self, contexts: list[TriggerContext]) -> None:
        waiting = {asyncio.create_task(context.ready.wait()) for context in contexts}
        done, _ = await asyncio.wait(
            waiting, timeout=self.deadline_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in waiting:
            task.cancel()
        assert done, f"no ctx.ready.set() within {self.deadline_seconds:g} s"

    async def _nothing_left(self, before: "set[asyncio.Task[Any]]") -> None:
        await asyncio.sleep(0)  # what was cancelled last has its turn
        left = [task for task in asyncio.all_tasks() - before if not task.done()]
        if left:
            _, left_set = await asyncio.wait(left, timeout=self.stop_seconds)
            names = sorted(task.get_name() for task in left_set)
            assert not left_set, f"the trigger left tasks running: {', '.join(names)}"

    async def _provoked(self, context: TriggerContext) -> None:
        if not self.fires_by_itself:
            await self.provoke(context.client)

    def _fits(self, fire: Fire) -> None:
        model = self.payload_model
        if isinstance(fire.payload, BaseModel):
            fits = isinstance(fire.payload, model)
            assert fits, f"fired {fire.payload!r}, not a {model.__name__}"
            return
        try:
            if isinstance(fire.payload, bytes):
                model.model_validate_json(fire.payload)
            else:
                model.model_validate({} if fire.payload is None else fire.payload)
        except ValidationError as error:
            raise AssertionError(
                f"fired {fire.payload!r:.200}, which is no {model.__name__}: {error}"
            ) from error

    def _check(self, check: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        with tempfile.TemporaryDirectory(prefix="trine-conformance-") as place:
            self.directory = Path(place)
            trigger = self.make()
            assert trigger.placement in ("shared", "single", "each"), (
                f"placement {trigger.placement!r}: the suite is for triggers that run beside their"
                " function"
            )
            in_own_loop(lambda url: check(Bench(url, trigger)), _LIMIT_SECONDS)
