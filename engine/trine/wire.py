"""The only module that spells a subject, a header or a stream name.

Everything is prefixed by a namespace, so that several systems can share one NATS server.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trine.errors import InternalError, TrineError, UsageError, from_wire

# Headers that Trine owns.
INVOCATION = "Trine-Invocation"
DEADLINE = "Trine-Deadline"  # milliseconds left when sent: no two clocks need to agree
ATTEMPT = "Trine-Attempt"
FUNCTION = "Trine-Function"
STREAM = "Trine-Stream"  # request: "1"; replies: "item" or "end"
REASON = "Trine-Reason"
TRACEPARENT = "traceparent"

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
KV_OPERATION = "KV-Operation"
MARKER_REASON = "Nats-Marker-Reason"
SEQUENCE = "Nats-Sequence"
SUBJECT = "Nats-Subject"
STATUS = "Status"
DESCRIPTION = "Description"

QUEUE_GROUP = "q"  # micro's default: replicas in any language share the load
RELAY_SECONDS = 24 * 3600  # how long a copy waits in the record for the streams that source it
PAYLOAD_MARGIN = 4096  # the server counts headers too, and closes the connection above its limit

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

    # Subjects.
    def fn(self, function: str) -> str:
        return f"{self.namespace}.fn.{function}"

    def on(self, worker: str, function: str) -> str:
        return f"{self.namespace}.on.{worker}.fn.{function}"

    def cancel(self, invocation: str) -> str:
        return f"{self.namespace}.cancel.{invocation}"

    def job(self, queue: str, requirement: str, job: str) -> str:
        return f"{self.namespace}.job.{queue}.{requirement}.{job}"

    def event(self, kind: str, key: str, event: str) -> str:
        return f"{self.namespace}.event.{kind}.{key}.{event}"

    def events_below(self, prefix: str) -> str:
        """The pattern of all events whose subject goes on after *prefix*."""
        return f"{self.namespace}.event.{prefix}.>"

    def result(self, job: str) -> str:
        return f"{self.namespace}.result.{job}"

    def dead_letter(self, source: str, message: str) -> str:
        return f"{self.namespace}.dead.{source}.{message}"

    def schedule(self, name: str) -> str:
        return f"{self.namespace}.tx.sched.{name}"

    def guard(self, batch: str) -> str:
        return f"{self.namespace}.tx.guard.{batch}"

    def relayed(self, subject: str) -> str:
        """The subject in the record whose copy arrives on *subject* of JOBS or EVENTS."""
        prefix = f"{self.namespace}."
        return f"{prefix}tx.{subject.removeprefix(prefix)}"

    def state(self, scope: str, key: str) -> str:
        return f"$KV.{self.namespace}_state.{scope}.{key}"

    def live(self, scope: str, key: str) -> str:
        """Where the server repeats each message of the record once it is stored."""
        return f"{self.namespace}.live.{scope}.{key}"

    def lease(self, key: str) -> str:
        return f"$KV.{self.namespace}_leases.{key}"

    def key_of(self, subject: str) -> str:
        """The key in its bucket of a KV subject: what follows ``$KV.<bucket>.``."""
        return subject.split(".", 2)[2]


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
    lines = raw.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    status = lines[0][8:].strip()  # after "NATS/1.0"
    if status:
        headers[STATUS], _, described = status.partition(" ")
        if described:
            headers[DESCRIPTION] = described
    for line in lines[1:]:
        name, colon, text = line.partition(":")
        if colon:
            headers[name] = text.strip()
    return headers


def encode_error(error: BaseException) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a failed reply; an unknown exception shows its type and text."""
    if not isinstance(error, TrineError):
        error = InternalError(f"{type(error).__name__}: {error}"[:2000])
    line = " ".join(error.message.split())[:500]
    headers = {ERROR: f"{error.code}: {line}", ERROR_CODE: str(error.status)}
    body = {"code": error.code, "message": error.message, "details": error.details}
    return headers, dumps(body)


def decode_error(headers: Mapping[str, str], body: bytes) -> TrineError:
    """Return the exception that a failed reply describes, also one from a foreign micro service."""
    status = int(headers[ERROR_CODE]) if headers.get(ERROR_CODE, "").isdigit() else 500
    try:
        said = json.loads(body)
        code, message = str(said["code"]), str(said["message"])
        details = said.get("details") or {}
    except (ValueError, KeyError, TypeError):
        return from_wire("internal", status, headers.get(ERROR, "the function failed"), {})
    return from_wire(code, status, message, details if isinstance(details, dict) else {})
