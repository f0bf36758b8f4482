"""The streams of a namespace: declared once, created or verified at start."""

from typing import Any

from nats.js import api

from trine.bus import Bus
from trine.errors import InternalError, ServerTooOldError, TrineError, UnavailableError

MINIMUM = (2, 14)
_DAY = 24 * 3600
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
            subjects=[f"$KV.{space}_leases.>"],
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
            duplicate_window=120,
            sources=[_relay(names.record, f"{space}.tx.job.>", f"{space}.job.>")],
        ),
        api.StreamConfig(
            name=names.events,
            subjects=[f"{space}.event.>"],
            max_age=7 * _DAY,
            allow_direct=True,
            duplicate_window=120,
            sources=[_relay(names.record, f"{space}.tx.event.>", f"{space}.event.>")],
        ),
        api.StreamConfig(
            name=names.results,
            subjects=[f"{space}.result.>"],
            max_msgs_per_subject=1,
            allow_direct=True,
            allow_msg_ttl=True,
            max_age=7 * _DAY,
        ),
        api.StreamConfig(
            name=names.dead,
            subjects=[f"{space}.dead.>"],
            allow_direct=True,
            duplicate_window=120,
        ),
        api.StreamConfig(  # the layout of nats-py's object store
            name=f"OBJ_{names.objects}",
            subjects=[f"$O.{names.objects}.C.>", f"$O.{names.objects}.M.>"],
            allow_direct=True,
            allow_rollup_hdrs=True,
            discard=api.DiscardPolicy.NEW,
        ),
    ]


def _relay(stream: str, source: str, target: str) -> api.StreamSource:
    return api.StreamSource(
        name=stream,
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
        await _create(bus, config)


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
