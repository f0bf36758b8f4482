"""Jobs: durable calls, their queues, and the handle on one of them."""

from typing import Any, Generic, TypeVar

import anyio

from trine import wire
from trine.bus import Bus, Message, Stored
from trine.connection import Msg
from trine.consume import Consumer, Delivery, Handler
from trine.errors import DeadlineError, TrineError
from trine.invocation import current
from trine.retry import Retry
from trine.wire import Names

O = TypeVar("O")  # noqa: E741 - output, as I is input
RESULT_SECONDS = 24 * 3600  # how long the result of a job is kept
ANY = "any"  # the requirement that every worker meets


def job_message(
    names: Names,
    queue: str,
    id: str,
    payload: bytes,
    *,
    requirement: str = ANY,
    function: str = "",
) -> Message:
    """Return the message that is the job: stored once per *id* within two minutes."""
    cause = current.get()
    headers = {wire.MSG_ID: id, **(cause.headers() if cause else {})}
    if function:
        headers[wire.FUNCTION] = function
    subject = names.job(
        wire.name(queue, "queue"), wire.name(requirement, "requirement"), wire.token(id)
    )
    return Message(subject, payload, headers)


def job_id(delivery: Delivery) -> str:
    """The id of the job that *delivery* is."""
    return delivery.subject.rsplit(".", 1)[1]


def queue_consumer(
    bus: Bus,
    queue: str,
    handle: Handler,
    *,
    requirements: tuple[str, ...] = (ANY,),
    concurrency: int = 16,
    ack_wait: float = 30.0,
    retry: Retry | None = None,
) -> list[Consumer]:
    """Return the consumers of *queue* for a worker that meets *requirements*.

    One durable consumer for each, shared by all workers: the server does the scheduling.
    """

    async def on_dead(delivery: Delivery, error: Exception) -> None:
        await put_result(bus, job_id(delivery), error=error)

    return [
        Consumer(
            bus,
            bus.names.jobs,
            f"{queue}--{requirement}",
            [bus.names.job(queue, requirement, "*")],
            handle,
            concurrency=concurrency,
            ack_wait=ack_wait,
            retry=retry or Retry(),
            on_dead=on_dead,
            forget=False,
        )
        for requirement in requirements
    ]


async def put_result(
    bus: Bus, id: str, payload: bytes = b"", error: BaseException | None = None
) -> None:
    """Keep the result, or the error, for a day, before the job is acknowledged."""
    headers = {wire.TTL: f"{RESULT_SECONDS}s"}
    if error is not None:
        said, payload = wire.encode_error(error)
        headers.update(said)
    await bus.store(bus.names.result(id), payload, headers)


class Job(Generic[O]):
    """The handle on a job, from any process: ``Job(client, id)``."""

    def __init__(self, bus: Bus, id: str, decode: Any = None) -> None:
        self._bus = bus
        self.id = id
        self._decode = decode

    async def result(self, timeout: float = 60.0) -> O:
        """Wait for the result; raises what the function raised when it will not be retried.

        `DeadlineError` after *timeout* seconds; the job goes on, and may be asked again.
        """
        subject = self._bus.names.result(wire.token(self.id))
        done = anyio.Event()
        arrived: list[Stored] = []

        def receive(message: Msg) -> None:
            arrived.append(Stored(message.subject, message.data, 0, message.headers or {}))
            done.set()

        listener = await self._bus.connection.listen(subject, receive)
        try:
            found = await self._bus.last(self._bus.names.results, subject)
            if found is None or found.gone:
                with anyio.fail_after(timeout):
                    await done.wait()
                found = arrived[0]
        except TimeoutError as error:
            raise DeadlineError(
                f"job {self.id} has no result after {timeout:g} s", job=self.id
            ) from error
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()
        if wire.ERROR in found.headers:
            raise _failed(found)
        return self._decode(found.payload) if self._decode else wire.loads(found.payload)  # type: ignore[no-any-return]


def _failed(found: Stored) -> TrineError:
    return wire.decode_error(found.headers, found.payload)
