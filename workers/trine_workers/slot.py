"""A slot: one device that takes experiments from the queue, trains them, and reports."""

import contextlib
import time
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from trine import Client, wire
from trine.consuming.consumer import Delivery, NotOursError
from trine.errors import TrineError, WriteConflictError
from trine.jobs.consumers import queue_consumer
from trine.leases import Lease
from trine_functions.contracts import (
    MAX_ATTEMPTS,
    SLOT_TTL_SECONDS,
    TRAIN_ACK_SECONDS,
    TRAIN_QUEUE,
    Experiment,
    ExperimentFinished,
    ExperimentStarted,
    Gpu,
    TrainJob,
    experiments,
    gpu_pool,
    now,
)
from trine_workers.attempt import Attempt
from trine_workers.devices import Device

log = structlog.get_logger("trine")


class Slot:
    """Runs one experiment at a time on *device*, for as long as `run` runs."""

    def __init__(
        self, client: Client, device: Device, worker: str, cache: Path, requirement: str
    ) -> None:
        self._client = client
        self._device = device
        self._worker = worker
        self._cache = cache
        self._requirement = requirement
        self._attempt: Attempt | None = None
        self._lease: Lease
        self.id = ""

    async def run(
        self, stopping: anyio.Event, *, task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Take a place in the pool, then work until *stopping* is set and the run has ended."""
        await self._enter()
        consumers = queue_consumer(
            self._client.bus,
            TRAIN_QUEUE,
            self._handle,
            requirements=(self._requirement,),
            concurrency=1,
            ack_wait=TRAIN_ACK_SECONDS,
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew)
                task_status.started(self.id)
                async with anyio.create_task_group() as working:
                    for consumer in consumers:
                        working.start_soon(consumer.run, stopping)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._leave()

    # --- the pool ------------------------------------------------------------------------------

    async def _enter(self) -> None:
        """Lease the first free number of this device: two programs never share a slot."""
        number = 0
        while True:
            self.id = self._device.slot_id(number)
            key = f"gpu.{wire.token(self.id)}"
            payload = wire.dumps({"gpu_id": self.id, "worker": self._worker})
            self._lease = Lease(self._client.bus, key, payload, SLOT_TTL_SECONDS)
            if await self._lease.take():
                break
            number += 1
        await self._announce("idle")

    async def _announce(self, status: str, experiment: str | None = None) -> None:
        blank = Gpu(
            id=self.id,
            name=self.id,
            gpu_index=self._device.index,
            gpu_name=self._device.name,
            vram_mb=self._device.memory_mb,
            registered_at=now(),
            last_heartbeat=now(),
            managed=True,
        )

        def change(old: Gpu) -> Gpu:
            return old.model_copy(
                update={
                    "status": status,
                    "current_experiment_id": experiment,
                    "last_heartbeat": now(),
                    "worker": self._worker,
                    "managed": True,
                }
            )

        await self._client.state(gpu_pool).change(wire.token(self.id), blank, change)

    async def _renew(self) -> None:
        """Renew the lease; where it was lost, take it again and see whose the experiment is."""
        while True:
            await anyio.sleep(SLOT_TTL_SECONDS / 3)
            try:
                await self._lease.renew()
            except WriteConflictError:
                log.warning("slot_lease_lost", slot=self.id)
                with contextlib.suppress(TrineError):
                    await self._return()
            except TrineError as error:
                log.warning("slot_lease_not_renewed", slot=self.id, error=error.message)

    async def _return(self) -> None:
        """Come back after an absence: under the same number, or another where that was taken."""
        if not await self._lease.take():
            await self._enter()
        if self._attempt is not None:
            await self._check(self._attempt)
            await self._announce("training", self._attempt.experiment)

    async def _check(self, attempt: Attempt) -> None:
        """End an attempt whose experiment another worker has by now."""
        found = await self._client.state(experiments).find(attempt.experiment)
        if found is None or found.value.attempt != attempt.number:
            attempt.abandon()

    async def _leave(self) -> None:
        with contextlib.suppress(TrineError):
            await self._announce("offline")
            await self._lease.release()

    # --- experiments ---------------------------------------------------------------------------

    async def _handle(self, delivery: Delivery) -> None:
        job = TrainJob.model_validate_json(delivery.payload)
        number = await self._take(job)
        if number is None:
            return  # it has ended: only the acknowledgement was lost
        await self._announce("training", job.experiment_id)
        try:
            await self._client.emit(
                ExperimentStarted(
                    experiment_id=job.experiment_id,
                    tag=job.tag,
                    attempt=number,
                    gpu_id=self.id,
                    worker=self._worker,
                )
            )
            attempt = Attempt(self._client, job, number, self._device, self.id, self._cache)
            self._attempt = attempt
            report = await attempt.run()
            await self._report(report)
            current = await self._client.state(experiments).get(job.experiment_id)
            if current.value.attempt != number:
                raise NotOursError(f"{job.experiment_id} went on as {current.value.attempt}")
        finally:
            self._attempt = None
            with (
                anyio.CancelScope(shield=True),
                anyio.move_on_after(2),
                contextlib.suppress(TrineError),
            ):
                await self._announce("idle")

    async def _take(self, job: TrainJob) -> int | None:
        """Raise the attempt number in the record, which fences every attempt before; return it.

        None when the experiment has ended, or has outlived too many workers and is given up.
        """
        store = self._client.state(experiments)
        while True:
            entry = await store.find(job.experiment_id)
            if entry is None or entry.value.status != "running":
                return None
            record: Experiment = entry.value
            if record.attempt >= MAX_ATTEMPTS:
                await self._report(_lost(job, record, self.id))
                return None
            taken = record.model_copy(
                update={
                    "attempt": record.attempt + 1,
                    "phase": "running",
                    "gpu_id": self.id,
                    "worker": self._worker,
                    "run_started_at": now(),
                }
            )
            try:
                await store.replace(entry, taken)
            except WriteConflictError:
                continue
            return taken.attempt

    async def _report(self, report: ExperimentFinished) -> None:
        """Emit the result, however long the server is away: the job is acknowledged after it."""
        started = time.monotonic()
        while True:
            try:
                await self._client.emit(report, id=f"{report.experiment_id}-{report.attempt}")
                return
            except TrineError as error:
                waited = round(time.monotonic() - started)
                log.warning("report_waits", error=error.message, seconds=waited)
                await anyio.sleep(1)


def _lost(job: TrainJob, record: Experiment, slot: str) -> ExperimentFinished:
    return ExperimentFinished(
        experiment_id=job.experiment_id,
        tag=job.tag,
        attempt=record.attempt,
        gpu_id=slot,
        outcome="crash",
        crash_class="lost",
        error=f"{record.attempt} workers died while they ran it",
    )
