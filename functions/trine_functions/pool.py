"""The pool of devices: agents lease them, workers announce their own."""

from typing import Any

from pydantic import BaseModel, Field

from trine import App, Context, Retry, wire
from trine.errors import BadRequestError, NotFoundError
from trine_functions.conclude import conclude
from trine_functions.contracts import Experiment, Gpu, experiments, gpu_pool, now
from trine_triggers import Cron, Http, Key, KeyChange

app = App("pool")

LEASE_SECONDS = 900.0  # an agent trains by itself and sends no heartbeats
_RETRY = Retry(attempts=40)


def key(gpu_id: str) -> str:
    return wire.token(gpu_id)


class RegisterGpu(BaseModel):
    gpu_id: str = Field(min_length=1, max_length=200)
    gpu_index: int = Field(ge=0)
    gpu_name: str
    vram_mb: float = Field(ge=0, allow_inf_nan=False)


@app.on(Http("POST", "/api/pool/register"))
@app.function("pool.register_gpu", retry=_RETRY)
async def register_gpu(ctx: Context, request: RegisterGpu) -> dict[str, Any]:
    """Add a device, or bring it back; a lease on it stays."""
    async with ctx.transaction() as tx:
        known = await tx.find(gpu_pool, key(request.gpu_id))
        held = known is not None and known.status == "training"
        gpu = Gpu(
            id=request.gpu_id,
            name=request.gpu_id,
            gpu_index=request.gpu_index,
            gpu_name=request.gpu_name,
            vram_mb=request.vram_mb,
            status="training" if held else "idle",
            current_experiment_id=known.current_experiment_id if known and held else None,
            registered_at=known.registered_at if known else now(),
            last_heartbeat=now(),
        )
        tx.put(gpu_pool, key(gpu.id), gpu)
    return {"registered": True, "worker": gpu.model_dump(mode="json")}


class ById(BaseModel):
    gpu_id: str


async def _known(ctx: Context, gpu_id: str) -> Gpu:
    found = await ctx.state(gpu_pool).find(key(gpu_id))
    if found is None:
        raise NotFoundError(f"no GPU {gpu_id!r}", gpu_id=gpu_id)
    return found.value


@app.on(Http("POST", "/api/pool/heartbeat"))
@app.function("pool.heartbeat", retry=_RETRY)
async def heartbeat(ctx: Context, request: ById) -> dict[str, Any]:
    """Say that a device is alive; renews the lease on it."""
    gpu = await _known(ctx, request.gpu_id)

    def alive(old: Gpu) -> Gpu:
        status = "idle" if old.status == "offline" else old.status
        return old.model_copy(update={"last_heartbeat": now(), "status": status})

    gpu = await ctx.state(gpu_pool).change(key(gpu.id), gpu, alive)
    if gpu.status == "training" and not gpu.managed:
        await _lease(ctx, gpu)
    return {"ok": True}


@app.on(Http("GET", "/api/pool/list"))
@app.on(Cron("*/30 * * * * *", catch_up="none"))
@app.function("pool.list")
async def list_gpus(ctx: Context) -> dict[str, Any]:
    """Return every device and how many are idle, training and offline."""
    found = [entry.value for entry in await ctx.state(gpu_pool).entries()]
    found.sort(key=lambda one: (one.registered_at, one.id))
    counts = {
        status: sum(one.status == status for one in found)
        for status in ("idle", "training", "offline")
    }
    workers = [one.model_dump(mode="json") for one in found]
    return {"workers": workers, "total": len(found), **counts}


class Acquire(BaseModel):
    experiment_id: str


@app.on(Http("POST", "/api/pool/acquire"))
@app.function("pool.acquire", retry=_RETRY)
async def acquire(ctx: Context, request: Acquire) -> dict[str, Any]:
    """Lease an idle device for 900 s; a heartbeat that names the device renews the lease.

    Devices of workers are not leased: they take submitted experiments by themselves.
    """
    entries = await ctx.state(gpu_pool).entries()
    candidates = sorted(
        (one.value for one in entries if not one.value.managed),
        key=lambda one: (one.gpu_index, one.id),
    )
    for gpu in candidates:
        if gpu.status == "training" and gpu.current_experiment_id == request.experiment_id:
            return {"acquired": True, "gpu_id": gpu.id, "gpu_index": gpu.gpu_index}
    for gpu in candidates:
        if gpu.status != "idle":
            continue
        async with ctx.transaction() as tx:
            fresh = await tx.find(gpu_pool, key(gpu.id))
            if fresh is None or fresh.status != "idle":
                continue
            taken = fresh.model_copy(
                update={"status": "training", "current_experiment_id": request.experiment_id}
            )
            tx.put(gpu_pool, key(gpu.id), taken)
        await _lease(ctx, taken)
        return {"acquired": True, "gpu_id": gpu.id, "gpu_index": gpu.gpu_index}
    reason = "every GPU is training or offline" if candidates else "no GPU is registered"
    return {"acquired": False, "gpu_id": None, "reason": reason}


async def _lease(ctx: Context, gpu: Gpu) -> None:
    """Write the key whose expiry frees the device."""
    headers = {wire.TTL: f"{LEASE_SECONDS:.0f}s"}
    bus = ctx.client.bus
    payload = wire.dumps({"gpu_id": gpu.id, "experiment_id": gpu.current_experiment_id})
    await bus.store(bus.names.lease(f"gpu.{key(gpu.id)}"), payload, headers)


class Release(BaseModel):
    gpu_id: str
    experiment_id: str | None = None


@app.on(Http("POST", "/api/pool/release"))
@app.function("pool.release", retry=_RETRY)
async def release(ctx: Context, request: Release) -> dict[str, Any]:
    """Give a leased device back."""
    async with ctx.transaction() as tx:
        gpu = await tx.find(gpu_pool, key(request.gpu_id))
        if gpu is None:
            raise NotFoundError(f"no GPU {request.gpu_id!r}", gpu_id=request.gpu_id)
        holder = gpu.current_experiment_id
        if holder is None or request.experiment_id not in (None, holder):
            raise BadRequestError(
                f"{request.gpu_id} is not leased to {request.experiment_id or 'anybody'}",
                holder=holder,
            )
        free = gpu.model_copy(update={"status": "idle", "current_experiment_id": None})
        tx.put(gpu_pool, key(gpu.id), free)
    bus = ctx.client.bus
    await bus.store(bus.names.lease(f"gpu.{key(gpu.id)}"), b"", {wire.KV_OPERATION: "DEL"})
    return {"released": True}


@app.on(Http("POST", "/api/pool/deregister"))
@app.function("pool.deregister", retry=_RETRY)
async def deregister(ctx: Context, request: ById) -> dict[str, Any]:
    """Remove a device."""
    gpu = await _known(ctx, request.gpu_id)
    await ctx.state(gpu_pool).delete(key(gpu.id))
    return {"deregistered": True}


@app.on(Key("leases", "gpu.*", on=("expire",)))
@app.function("pool.expire", retry=_RETRY)
async def expire(ctx: Context, change: KeyChange) -> None:
    """A lease ran out: a worker's slot goes offline; an agent's device is freed, its run lost."""
    slot = change.key.removeprefix("gpu.")
    lease = await ctx.client.bus.last(
        ctx.client.bus.names.leases, ctx.client.bus.names.lease(change.key)
    )
    if lease is not None and not lease.gone:
        return  # it was taken again in the meantime
    lost: Experiment | None = None
    async with ctx.transaction() as tx:
        gpu = await tx.find(gpu_pool, slot)
        if gpu is None:
            return
        if gpu.managed:
            tx.put(gpu_pool, slot, gpu.model_copy(update={"status": "offline"}))
            return
        if gpu.current_experiment_id is not None:
            lost = await tx.find(experiments, gpu.current_experiment_id)
        free = gpu.model_copy(update={"status": "idle", "current_experiment_id": None})
        tx.put(gpu_pool, slot, free)
    if lost is not None and lost.status == "running" and lost.tree is None:
        why = f"the lease on {gpu.id} ran out after {LEASE_SECONDS:.0f} s without a sign of life"
        await conclude(ctx, lost.id, None, why, "lost")
