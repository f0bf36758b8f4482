"""The only module that spells a subject, a header or a stream name.

Everything is prefixed by a namespace, so that several systems can share one NATS server.
"""
# Longer than 300 lines: every name on the wire has one place, and it is this one.

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from trine.errors import InternalError, TrineError, UsageError, from_wire

# Headers that Trine owns.
INVOCATION = "Trine-Invocation"
DEADLINE = "Trine-Deadline"  # milliseconds left when sent: no two clocks need to agree
ATTEMPT = "Trine-Attempt"
FUNCTION = "Trine-Function"
STREAM = "Trine-Stream"  # request: "1"; replies: "item" or "end"
REASON = "Trine-Reason"
WORKER = "Trine-Worker"
GATHER = "Trine-Gather"  # request: "1" when every replica is asked, and has to say who it is
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
OBJECT = "Trine-Object"  # the payload is this object in the store
IDEMPOTENCY = "Trine-Idempotency-Key"
KEEP = "Trine-Keep"  # seconds for which the result of a job is kept, where not the default
UNIQUE = "Trine-Unique"  # the key under which a job is the only one of its queue
ORIGIN = "Trine-Subject"  # of a dead letter, and of one that is given again: where it was
ORIGIN_SEQUENCE = "Trine-Sequence"
ORIGIN_STREAM = "Trine-Stream-Name"
CONSUMER = "Trine-Consumer"
REDRIVE = "Trine-Redrive"  # the dead letter that this message was
WAS = "Trine-Was-"  # before the name of a header of the server's, in a dead letter
DIGEST = "Trine-Digest"  # of the payload that an idempotency key was used with
STATE = "Trine-State"

# Headers of the NATS micro protocol and of JetStream.
ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"
MSG_ID = "Nats-Msg-Id"
TTL = "Nats-TTL"
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"
SCHEDULE_ZONE = "Nats-Schedule-Time-Zone"
SCHEDULE_TTL = "Nats-Schedule-TTL"
STREAM_SOURCE = "Nats-Stream-Source"  # on what a stream took over from another
SCHEDULE_NEXT = "Nats-Schedule-Next"
SCHEDULED = "Trine-Scheduled"  # on a tick made late: when it was due
MENDED = "Trine-Mended"  # on a tick that the server passed over: when it fires next by itself
KV_OPERATION = "KV-Operation"
MARKER_REASON = "Nats-Marker-Reason"
SEQUENCE = "Nats-Sequence"
TIMESTAMP = "Nats-Time-Stamp"
SUBJECT = "Nats-Subject"
STATUS = "Status"
DESCRIPTION = "Description"

QUEUE_GROUP = "q"  # micro's default: replicas in any language share the load
RELAY_SECONDS = 24 * 3600  # how long a copy waits in the record for the streams that source it
PAYLOAD_MARGIN = 4096  # the server counts headers too, and closes the connection above its limit

N = TypeVar("N", int, None)  # what stands for no number

_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """The subjects and streams of one namespace."""

    namespace: str = "trine"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.namespace):
            raise UsageError(f"namespace {self.namespace!r} may hold only letters, digits, _ and -")

    # Streams and buckets.
    @property
    def record(self) -> str:
        return f"KV_{self.namespace}_state"

    @property
    def leases(self) -> str:
        return f"KV_{self.namespace}_leases"

    @property
    def jobs(self) -> str:
        return f"{self.namespace}_JOBS"

    @property
    def events(self) -> str:
        return f"{self.namespace}_EVENTS"

    @property
    def results(self) -> str:
        return f"{self.namespace}_RESULTS"

    @property
    def dead(self) -> str:
        return f"{self.namespace}_DEAD"

    @property
    def objects(self) -> str:
        return f"{self.namespace}_objects"

    @property
    def traces(self) -> str:
        return f"{self.namespace}_TRACES"

    # Subjects.
    def fn(self, function: str) -> str:
        return f"{self.namespace}.fn.{function}"

    def on(self, worker: str, function: str) -> str:
        return f"{self.namespace}.on.{worker}.fn.{function}"

    def all(self, function: str) -> str:
        """Where every replica of a function hears a call to all of them."""
        return f"{self.namespace}.all.fn.{function}"

    def alive(self, process: str) -> str:
        """Where a process with calls that take long says that it still waits."""
        return f"{self.namespace}.alive.{process}"

    def done(self, function: str) -> str:
        """Where the completions of a function are told, while somebody observes it."""
        return f"{self.namespace}.done.{function}"

    def cancel(self, invocation: str) -> str:
        return f"{self.namespace}.cancel.{invocation}"

    def job(self, queue: str, requirement: str, lane: str, job: str) -> str:
        return f"{self.namespace}.job.{queue}.{requirement}.{lane}.{job}"

    def stored_job(self, queue: str) -> str:
        """Where the server tells of each job of *queue* that it has stored."""
        return f"{self.namespace}.stored.{queue}.>"

    def delayed(self, queue: str, requirement: str, lane: str, job: str) -> str:
        """Where the schedule of a job waits until the job is due."""
        return f"{self.namespace}.tx.job.at.{queue}.{requirement}.{lane}.{job}"

    def job_guard(self, queue: str, job: str) -> str:
        """The pattern of all that the record holds of a job: its schedule, its copy."""
        return f"{self.namespace}.tx.job.*.{queue}.*.*.{job}"

    def unique(self, queue: str, key: str) -> str:
        """Which job of *queue* has *key* for its own."""
        return f"{self.namespace}.tx.unique.{queue}.{key}"

    def paused(self, queue: str) -> str:
        """Says that a queue is paused, to workers that are yet to come."""
        return f"{self.namespace}.tx.paused.{queue}"

    def stop(self, queue: str, job: str) -> str:
        """Where the workers of *queue* hear that a job is cancelled."""
        return f"{self.namespace}.stop.{queue}.{job}"

    def event(self, kind: str, key: str, event: str) -> str:
        return f"{self.namespace}.event.{kind}.{key}.{event}"

    def changed(self, scope: str, partition: int, keys: str) -> str:
        """Changes of a scope; *keys* is a key and the id of the event, or a pattern of them."""
        return f"{self.namespace}.event.changed.{scope}.{partition}.{keys}"

    def events_below(self, prefix: str) -> str:
        """The pattern of all events whose subject goes on after *prefix*."""
        return f"{self.namespace}.event.{prefix}.>"

    def result(self, queue: str, job: str) -> str:
        return f"{self.namespace}.result.{queue}.{job}"

    def progress(self, queue: str, job: str) -> str:
        return f"{self.namespace}.progress.{queue}.{job}"

    def told(self, subject: str) -> str:
        """Where the server repeats a result or a progress once it is stored."""
        prefix = f"{self.namespace}."
        return f"{prefix}told.{subject.removeprefix(prefix)}"

    def excused(self, consumer: str, sequence: int) -> str:
        """How many deliveries of a message do not count as attempts."""
        return f"{self.namespace}.excused.{consumer}.{sequence}"

    def redrive(self, stream: str, consumer: str, letter: str) -> str:
        """Where *stream* takes a dead letter that only *consumer* is to get again."""
        if stream == self.record:
            return f"{self.namespace}.tx.redrive.{consumer}.{letter}"
        kind = "leases.redrive" if stream == self.leases else "redrive"
        return f"{self.namespace}.{kind}.{consumer}.{letter}"

    def reply(self, function: str, key: str) -> str:
        """Where the reply to an idempotency key is kept."""
        return f"{self.namespace}.reply.{function}.{key}"

    def dead_letter(self, source: str, message: str) -> str:
        return f"{self.namespace}.dead.{source}.{message}"

    def trace(self, trace: str, span: str, invocation: str) -> str:
        """Where one span of a trace is recorded; each of the three may be ``*``."""
        return f"{self.namespace}.trace.{trace}.{span}.{invocation}"

    def schedule(self, name: str) -> str:
        return f"{self.namespace}.tx.sched.{name}"

    def guard(self, batch: str) -> str:
        return f"{self.namespace}.tx.guard.{batch}"

    def relayed(self, subject: str) -> str:
        """The subject in the record whose copy arrives on *subject* of JOBS or EVENTS."""
        prefix = f"{self.namespace}."
        jobs = f"{prefix}job."
        if subject.startswith(jobs):
            return f"{prefix}tx.job.now.{subject.removeprefix(jobs)}"
        return f"{prefix}tx.{subject.removeprefix(prefix)}"

    @property
    def relayed_jobs(self) -> str:
        """What the subjects of all jobs in the record begin with, delayed ones too."""
        return f"{self.namespace}.tx.job."

    def state(self, scope: str, key: str) -> str:
        return f"$KV.{self.namespace}_state.{scope}.{key}"

    def live(self, scope: str, key: str) -> str:
        """Where the server repeats each message of the record once it is stored."""
        return f"{self.namespace}.live.{scope}.{key}"

    def lease(self, key: str) -> str:
        return f"$KV.{self.namespace}_leases.{key}"

    def object_info(self, name: str) -> str:
        return f"$O.{self.objects}.M.{name}"

    def object_chunk(self, upload: str) -> str:
        return f"$O.{self.objects}.C.{upload}"

    def key_of(self, subject: str) -> str:
        """The key in its bucket of a KV subject: what follows ``$KV.<bucket>.``."""
        return subject.split(".", 2)[2]


@functools.lru_cache(maxsize=4096)
def function_id(value: str) -> str:
    """Return the canonical id: ``experiment::setup`` and ``experiment.setup`` are one function."""
    canonical = value.replace("::", ".")
    if not _ID.fullmatch(canonical):
        raise UsageError(f"function id {value!r}: use lower-case words joined by dots, noun.verb")
    return canonical


def name(value: str, what: str) -> str:
    """Return *value* if it can be one token of a subject."""
    if not _NAME.fullmatch(value):
        raise UsageError(f"{what} {value!r} may hold only letters, digits, _ and -")
    return value


def key(value: str) -> str:
    """Return *value* if the server accepts it as a key."""
    if not _KEY.fullmatch(value) or len(value) > 256:
        shown = value if len(value) <= 64 else value[:61] + "..."
        raise UsageError(f"key {shown!r} may hold letters, digits, - / _ = and single dots")
    return value


def token(value: str) -> str:
    """Return *value* as one token: what a subject cannot hold becomes ``-``."""
    return re.sub(r"[^a-zA-Z0-9_=-]+", "-", value)[:128] or "-"


def function_queue(function: str) -> str:
    """The queue in which the durable calls of one function wait."""
    return "fn-" + function.replace(".", "-")


def dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=str).encode()


def loads(payload: bytes) -> Any:
    return json.loads(payload)


def parse_headers(raw: bytes) -> dict[str, str] | None:
    """Return the headers, with an inline status as ``Status`` and ``Description``."""
    if not raw:
        return None
    lines = raw.decode(errors="replace").removesuffix("\r\n\r\n").split("\r\n")
    headers: dict[str, str] = {}
    if len(lines[0]) > 8:  # after "NATS/1.0"
        status = lines[0][8:].strip()
        if status:
            headers[STATUS], _, described = status.partition(" ")
            if described:
                headers[DESCRIPTION] = described
    del lines[0]
    for line in lines:
        name, colon, text = line.partition(":")
        if colon:
            headers[name] = text.strip()
    return headers


def internal(error: BaseException, **details: Any) -> TrineError:
    """Return what callers are told of an exception that is not ours: its type and text."""
    return InternalError(f"{type(error).__name__}: {error}"[:2000], **details)


def encode_error(error: BaseException) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a failed reply."""
    if not isinstance(error, TrineError):
        error = internal(error)
    line = " ".join(error.message.split())[:500]
    headers = {ERROR: f"{error.code}: {line}", ERROR_CODE: str(error.status)}
    body = {"code": error.code, "message": error.message, "details": error.details}
    return headers, dumps(body)


def decode_error(headers: Mapping[str, str], body: bytes) -> TrineError:
    """Return the exception that a failed reply describes, also one from a foreign micro service."""
    status = _status(headers.get(ERROR_CODE, ""))
    try:
        said = json.loads(body)
        code, message = str(said["code"]), str(said["message"])
        details = said.get("details")
    except (ValueError, KeyError, TypeError, RecursionError):
        code = _CODES.get(status, "internal")  # a plain micro service says no more than that
        return from_wire(code, status, headers.get(ERROR, "the function failed"), {})
    error = from_wire(code, status, message, {})
    if isinstance(details, dict):
        error.details = details
    return error


_CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    409: "conflict",
    413: "too_large",
    422: "invalid_input",
    429: "too_many_requests",
    503: "unavailable",
    504: "deadline_exceeded",
}


def _status(said: str) -> int:
    return int(said) if re.fullmatch(r"[45][0-9][0-9]", said, re.ASCII) else 500


def whole(said: str | None, most: int, default: N) -> int | N:
    """Return the whole number that a header says, *most* at most; *default* when it is none."""
    if not said or len(said) > 18 or not (said.isascii() and said.isdigit()):
        return default
    return min(int(said), most)
