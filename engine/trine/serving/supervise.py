"""Keeping one trigger running where its placement says, for as long as its worker serves."""

import anyio
import structlog

from trine.errors import TrineError
from trine.leases import Lease
from trine.trigger import TriggerContext

log = structlog.get_logger("trine")

_SINGLE_SECONDS = 10.0


async def supervise(context: TriggerContext, worker: str) -> None:
    """Run the trigger of *context* until its ``stopping`` is set."""
    placement = context.binding.trigger.placement
    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await context.stopping.wait()
            if placement != "shared":  # a durable consumer ends by itself, when it has drained
                tasks.cancel_scope.cancel()

        tasks.start_soon(end)
        if placement == "single":
            await _hold(context, worker)
        else:
            await _keep_running(context)
        tasks.cancel_scope.cancel()


async def _hold(context: TriggerContext, worker: str) -> None:
    """Run the trigger in one replica at a time: in the one that has its lease."""
    key = f"trigger.{context.binding.id}"
    lease = Lease(context.client.bus, key, worker.encode(), _SINGLE_SECONDS)
    while True:
        try:
            taken = await lease.take()
        except TrineError:
            taken = False
        if not taken:
            await anyio.sleep(_SINGLE_SECONDS / 3)
            continue
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_keep_running, context)
                while lease.held:
                    await anyio.sleep(_SINGLE_SECONDS / 3)
                    try:
                        await lease.renew()
                    except TrineError as error:
                        log.warning("trigger_lease", key=key, error=str(error))
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await lease.release()


async def _keep_running(context: TriggerContext) -> None:
    """Start the trigger again when it fails: one broken source must not end the process."""
    delay = 0.5
    while not context.stopping.is_set():
        try:
            await context.binding.trigger.run(context)
            return
        except Exception:
            context.ready.set()  # its worker does not wait for it
            log.exception("trigger_failed", binding=context.binding.id, retry_in=delay)
        await anyio.sleep(delay)
        delay = min(delay * 2, 30.0)
