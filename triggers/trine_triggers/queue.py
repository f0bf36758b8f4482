"""Queue: run a function for each job of a named queue."""

from typing import Any, ClassVar

import anyio
from pydantic import Field

from trine import Retry, Trigger, TriggerContext
from trine.consume import Delivery
from trine.jobs import ANY, job_id, put_result, queue_consumer
from trine.trigger import Placement


class Queue(Trigger):
    """``Queue("renders", concurrency=2)``: what `Client.enqueue` puts there, at least once.

    *concurrency*: jobs at once in each worker. *requirements*: the requirement sets that this
    worker meets; it takes jobs of those only. What fails comes again by the function's retry
    policy and ends in the dead letters. The result is kept for `Job.result`.
    """

    placement: ClassVar[Placement] = "shared"

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    concurrency: int = Field(default=1, ge=1)
    requirements: tuple[str, ...] = (ANY,)
    ack_wait: float = Field(default=30.0, gt=0)  # seconds until the jobs of a dead worker go on

    def __init__(self, name: str, **data: Any) -> None:
        super().__init__(name=name, **data)

    async def run(self, ctx: TriggerContext) -> None:
        function = ctx.binding.function

        async def handle(delivery: Delivery) -> None:
            job = job_id(delivery)
            output = await ctx.deliver(delivery.payload, delivery.attempt, job=job)
            await put_result(ctx.client.bus, job, function.encode(output))

        async with anyio.create_task_group() as tasks:
            for consumer in queue_consumer(
                ctx.client.bus,
                self.name,
                handle,
                requirements=self.requirements,
                concurrency=self.concurrency,
                ack_wait=self.ack_wait,
                retry=function.retry or Retry(),
            ):
                await tasks.start(consumer.run, ctx.stopping)
            ctx.ready.set()
