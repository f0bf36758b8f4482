"""One attempt at one experiment: its directory, its program, its progress, its report."""

import math
import shutil
import time
from contextlib import closing
from pathlib import Path

import anyio
import structlog

from trine import Client
from trine.consuming.consumer import NotOursError
from trine.errors import BadRequestError, NotFoundError, TrineError
from trine_functions.contracts import (
    CrashClass,
    ExperimentFinished,
    ExperimentProgress,
    Metrics,
    TrainJob,
)
from trine_workers import program
from trine_workers.devices import Device
from trine_workers.output import Output
from trine_workers.program import Exit, Log
from trine_workers.tree import materialise

log = structlog.get_logger("trine")

_PROGRESS_SECONDS = 0.5
_SLACK = 3.0  # wall time per second of budget, where the budget is CPU time on a shared host


class Attempt:
    """Runs the program of a job once. `run` gives the report; cancelling it ends the program."""

    def __init__(
        self, client: Client, job: TrainJob, number: int, device: Device, slot: str, cache: Path
    ) -> None:
        self._client = client
        self._job = job
        self._device = device
        self._slot = slot
        self._cache = cache
        self._scope = anyio.CancelScope()
        self._output = Output()
        self._news = anyio.Event()
        self.number = number
        self.experiment = job.experiment_id

    def abandon(self) -> None:
        """End the program: the experiment belongs to another attempt."""
        self._scope.cancel()

    async def run(self) -> ExperimentFinished:
        """Build the directory, run the program, keep its log, and say how it ended."""
        place = self._cache / "attempts" / f"{self.experiment}-{self.number}"
        shutil.rmtree(place, ignore_errors=True)
        try:
            with self._scope:
                return await self._run(place)
            raise NotOursError(f"{self.experiment} went on elsewhere")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    async def _run(self, place: Path) -> ExperimentFinished:
        started = time.monotonic()
        logfile = place.with_suffix(".log")
        try:
            try:
                await materialise(self._client.objects, self._job.tree, place / "tree", self._cache)
            except (BadRequestError, NotFoundError) as error:
                return _failed(self._finished(None, started), "crash", "refused", error.message)
            ended = await self._run_program(place / "tree", logfile)
            if isinstance(ended, BadRequestError):
                return _failed(self._finished(None, started), "crash", "refused", ended.message)
            self._output.end()
            kept = await self._keep_log(logfile)
            return self._judge(ended, self._finished(kept, started))
        finally:
            logfile.unlink(missing_ok=True)

    async def _run_program(self, cwd: Path, logfile: Path) -> Exit | BadRequestError:
        """Run the program; an error that says why it cannot be run is given, not raised."""
        job = self._job
        ended: Exit | BadRequestError = BadRequestError("the program did not run")
        with closing(Log(logfile)) as printed:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._emit_progress)
                try:
                    ended = await program.run(
                        job.command,
                        cwd=cwd,
                        extra={
                            **self._device.environment(self._cache),
                            "TRAIN_SECONDS": f"{job.budget_seconds:g}",
                            "TRINE_EXPERIMENT": job.experiment_id,
                            "TRINE_ATTEMPT": str(self.number),
                        },
                        log=printed,
                        on_output=self._receive,
                        limit_seconds=job.startup_seconds + _SLACK * job.budget_seconds,
                    )
                except BadRequestError as error:
                    ended = error
                tasks.cancel_scope.cancel()
        return ended

    # --- while it runs -------------------------------------------------------------------------

    def _receive(self, chunk: bytes) -> None:
        if self._output.feed(chunk):
            self._news.set()

    async def _emit_progress(self) -> None:
        """Emit the latest progress at most twice a second; one that cannot be sent is dropped."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            progress = self._output.progress
            if progress is not None:
                event = ExperimentProgress(
                    experiment_id=self.experiment,
                    tag=self._job.tag,
                    attempt=self.number,
                    gpu_id=self._slot,
                    step=progress.step,
                    progress=progress.share,
                    printed_at=time.time(),
                    **{name: value for name, value in progress.facts.items() if _finite(value)},
                )
                try:
                    await self._client.emit(event)
                except TrineError as error:
                    log.debug("progress_dropped", error=error.message)
            await anyio.sleep(_PROGRESS_SECONDS)

    async def _keep_log(self, logfile: Path) -> str | None:
        try:
            return await self._client.objects.put(logfile.read_bytes())
        except (TrineError, OSError) as error:
            log.warning("log_not_kept", experiment=self.experiment, error=str(error))
            return None

    # --- how it ended --------------------------------------------------------------------------

    def _finished(self, kept: str | None, started: float) -> ExperimentFinished:
        return ExperimentFinished(
            experiment_id=self.experiment,
            tag=self._job.tag,
            attempt=self.number,
            gpu_id=self._slot,
            outcome="success",
            log=kept,
            wall_seconds=round(time.monotonic() - started, 3),
        )

    def _judge(self, ended: Exit, finished: ExperimentFinished) -> ExperimentFinished:
        tail = "\n".join(self._output.tail)
        if ended.ended == "timeout":
            why = f"killed after {ended.seconds:.0f} s: the limit is startup and 3 × the budget"
            return _failed(finished, "timeout", "timeout", f"{why}\n{tail}")
        if ended.code != 0:
            said = f"exit code {ended.code}" if ended.code > 0 else f"signal {-ended.code}"
            crash_class = _classify(tail, ended.code)
            return _failed(finished, "crash", crash_class, f"{said}\n{tail}{_hint(tail)}")
        value = self._output.metrics.get("val_bpb")
        if value is None:
            return _failed(finished, "crash", "no_metric", f"no line `val_bpb: <number>`\n{tail}")
        if not math.isfinite(value) or value <= 0:
            return _failed(finished, "crash", "nan", f"val_bpb is {value}\n{tail}")
        metrics = {name: one for name, one in self._output.metrics.items() if _finite(one)}
        return finished.model_copy(update={"metrics": Metrics.model_validate(metrics)})


def _failed(
    finished: ExperimentFinished, outcome: str, crash_class: CrashClass, error: str
) -> ExperimentFinished:
    update = {"outcome": outcome, "crash_class": crash_class, "error": error[:20_000]}
    return finished.model_copy(update=update)


def _classify(tail: str, code: int) -> CrashClass:
    lower = tail.lower()
    if "out of memory" in lower or "outofmemory" in lower or "memoryerror" in lower:
        return "oom"
    if "fail: loss is" in lower or "nan" in lower.rsplit("\n", 1)[-1]:
        return "nan"
    return "killed" if code < 0 else "error"


def _hint(tail: str) -> str:
    if "No module named 'torch'" in tail:
        return "\ninstall what trains on this host: pip install 'trine[gpu]'"
    return ""


def _finite(value: float) -> bool:
    return math.isfinite(value)
