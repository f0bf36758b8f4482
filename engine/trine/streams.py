"""The streams of a namespace: declared once, created or verified at start."""

from typing import Any

import structlog
from nats.js import api

from trine.bus import Bus
from trine.errors import (
    InternalError,
    ServerTooOldError,
    StorageFullError,
    TrineError,
    UnavailableError,
)

log = structlog.get_logger("trine")

MINIMUM = (2, 14)
_DAY = 24 * 3600
_TRACE_SECONDS = 3600
_TRACE_SPANS = 50_000  # about 40 MB of the server's memory
_TRACE_BYTES = 4096
_EXISTS_OTHERWISE = 10058  # the server's code
_MARKER_SECONDS = 300  # how long the marker of an expired lease stays readable


def declared(bus: Bus) -> list[api.StreamConfig]:
    """Return what this namespace needs. The traps behind each choice were tried on the server."""
    names = bus.names
    space = names.namespace
    return [
        # State, and what a change of state causes: one stream, so that one atomic batch can
        # write all of it. No subject_delete_marker_ttl: an expired copy would be relayed again.
        api.StreamConfig(
            name=names.record,
            subjects=[f"$KV.{space}_state.>", f"{space}.tx.>"],
            max_msgs_per_subject=1,
            allow_direct=True,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
            allow_atomic=True,
            allow_msg_schedules=True,
            duplicate_window=120,
            # Watchers hear of what is stored. On the keys themselves they would hear of writes
            # that are not committed yet, or are refused.
            republish=api.RePublish(src=f"$KV.{space}_state.>", dest=f"{space}.live.>"),
        ),
        # Keys that expire. Markers make an expiry visible to consumers.
        api.StreamConfig(
            name=names.leases,
            subjects=[f"$KV.{space}_leases.>", f"{space}.leases.redrive.>"],
            max_msgs_per_subject=1,
            allow_direct=True,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
            subject_delete_marker_ttl=_MARKER_SECONDS,
            discard=api.DiscardPolicy.NEW,
        ),
        # No TTL, size limit or per-subject discard: they would drop acknowledged jobs.
        api.StreamConfig(
            name=names.jobs,
            subjects=[f"{space}.job.>"],
            retention=api.RetentionPolicy.WORK_QUEUE,
            allow_direct=True,
            duplicate_window=120,
            sources=[_relay(names.record, f"{space}.tx.job.now.>", f"{space}.job.>")],
            # Workers hear of the first job of a queue: until then it needs no consumer.
            republish=api.RePublish(
                src=f"{space}.job.>", dest=f"{space}.stored.>", headers_only=True
            ),
        ),
        api.StreamConfig(
            name=names.events,
            subjects=[f"{space}.event.>", f"{space}.redrive.>"],
            max_age=7 * _DAY,
            allow_direct=True,
            duplicate_window=120,
            sources=[_relay(names.record, f"{space}.tx.event.>", f"{space}.event.>")],
        ),
        api.StreamConfig(
            name=names.results,
            subjects=[f"{space}.{kind}.>" for kind in ("result", "reply", "progress", "excused")],
            max_msgs_per_subject=1,
            allow_direct=True,
            allow_msg_ttl=True,
            max_age=14 * _DAY,
            # Who waits hears of what is stored, not of a second result, which is refused.
            republish=api.RePublish(src=f"{space}.>", dest=f"{space}.told.>"),
        ),
        api.StreamConfig(
            name=names.dead,
            subjects=[f"{space}.dead.>"],
            allow_direct=True,
            duplicate_window=120,
        ),
        # What `trine trace` shows. Bounded by a count: the server would reserve a size for each
        # namespace, and a server with little memory has other things to do.
        api.StreamConfig(
            name=names.traces,
            subjects=[f"{space}.trace.>"],
            storage=api.StorageType.MEMORY,
            max_age=_TRACE_SECONDS,
            max_msgs=_TRACE_SPANS,
            max_msg_size=_TRACE_BYTES,
            allow_direct=True,
            no_ack=True,
        ),
        api.StreamConfig(  # the layout of nats-py's object store
            name=f"OBJ_{names.objects}",
            subjects=[f"$O.{names.objects}.C.>", f"$O.{names.objects}.M.>"],
            allow_direct=True,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,  # large payloads go when nobody can want them any more
            discard=api.DiscardPolicy.NEW,
        ),
    ]


def _relay(stream: str, source: str, target: str) -> api.StreamSource:
    return api.StreamSource(
        name=stream,
        # Without it the server begins, as long as nothing was relayed, at the time of the last
        # message here: what was relayed before a direct publish and not yet taken would be lost.
        opt_start_seq=1,
        subject_transforms=[api.SubjectTransform(src=source, dest=target)],
    )


async def ensure(bus: Bus) -> None:
    """Create the streams that are missing, on as many servers as the cluster has, up to three.

    `ServerTooOldError` names the server's version.
    """
    info = bus.connection._server_info  # noqa: SLF001 - nats-py offers the version only
    check_version(info.get("version", "0"))
    if not info.get("jetstream", False):
        raise UnavailableError("the NATS server runs without JetStream: start it with -js")
    replicas = 3 if len(info.get("connect_urls", [])) >= 3 else 1
    for config in declared(bus):
        config.num_replicas = replicas
        try:
            await _create(bus, config)
        except StorageFullError:
            if config.name != bus.names.traces:
                raise
            log.warning("traces_not_kept", why="the NATS server has no memory for streams")


async def _create(bus: Bus, config: api.StreamConfig) -> None:
    """Create the stream, or bring one of an earlier version of Trine up to date."""
    body: dict[str, Any] = config.as_dict()
    try:
        await bus.api(f"STREAM.CREATE.{config.name}", body)
    except InternalError as error:
        if error.details.get("err_code") != _EXISTS_OTHERWISE:
            raise TrineError(f"stream {config.name}: {error.message}") from error
        await bus.api(f"STREAM.UPDATE.{config.name}", body)


def check_version(version: str) -> None:
    """Raise `ServerTooOldError` below the first version with atomic batches and cron schedules."""
    release = version.partition("-")[0]
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    if numbers < MINIMUM:
        raise ServerTooOldError(
            f"nats-server {version} is too old: Trine needs {MINIMUM[0]}.{MINIMUM[1]} or newer"
            " (cron schedules and atomic batches); without --nats it brings its own",
            version=version,
        )
