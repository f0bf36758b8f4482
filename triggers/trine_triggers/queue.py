"""Queue: run a function for each job of a named queue."""

from typing import Any, ClassVar, Self

import anyio
from pydantic import Field, model_validator

from trine import Retry, Trigger, TriggerContext
from trine.consuming.consumer import Delivery
from trine.errors import UsageError
from trine.jobs.consumers import ANY, check_layout, job_facts, put_result, queue_consumer
from trine.trigger import Placement


class Queue(Trigger):
    """``Queue("renders", concurrency=2)``: what `Client.enqueue` puts there, at least once.

    *concurrency*: jobs at once in each worker; *total*: in all workers together. *requirements*:
    the requirement sets that this worker meets, the first served first; it takes jobs of those
    only. *priorities*: high before normal before low, else all in the order of arrival. *fifo*:
    jobs with one key run in order, one at a time, also while one of them is repeated. What fails
    comes again by the function's retry policy and ends in the dead letters.
    """

    placement: ClassVar[Placement] = "shared"

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    concurrency: int = Field(default=1, ge=1)
    total: int | None = Field(default=None, ge=1)
    requirements: tuple[str, ...] = Field(default=(ANY,), min_length=1)
    priorities: bool = False
    fifo: bool = False
    ack_wait: float = Field(default=30.0, gt=0)  # seconds until the jobs of a dead worker go on

    def __init__(self, name: str, **data: Any) -> None:
        super().__init__(name=name, **data)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            check_layout(
                self.requirements, priorities=self.priorities, fifo=self.fifo, total=self.total
            )
        except UsageError as error:
            raise ValueError(error.message) from error
        return self

    async def run(self, ctx: TriggerContext) -> None:
        function = ctx.binding.function

        async def handle(delivery: Delivery) -> None:
            output = await ctx.deliver(
                delivery.payload, delivery.attempt, delivery.headers, **job_facts(delivery)
            )
            await put_result(ctx.client.bus, delivery, function.encode(output))

        async with anyio.create_task_group() as tasks:
            for consumer in queue_consumer(
                ctx.client.bus,
                self.name,
                handle,
                requirements=self.requirements,
                concurrency=self.concurrency,
                ack_wait=self.ack_wait,
                retry=function.retry or Retry(),
                priorities=self.priorities,
                fifo=self.fifo,
                total=self.total,
            ):
                await tasks.start(consumer.run, ctx.stopping)
            ctx.ready.set()
