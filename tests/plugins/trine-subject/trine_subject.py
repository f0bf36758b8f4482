# trine-subject/trine_subject.py
"""Subject: run a function for each message on a plain NATS subject, whoever publishes there."""

import anyio
from pydantic import BaseModel

from trine import Trigger, TriggerContext


class SubjectMessage(BaseModel):
    """The payload: where the message came in, and its text."""

    subject: str
    text: str


class Subject(Trigger):
    """``Subject("sensors.*.heat")``: at most once, in one of the replicas."""

    placement = "shared"

    subject: str

    async def run(self, ctx: TriggerContext) -> None:
        send, receive = anyio.create_memory_object_stream(max_buffer_size=1000)

        def take(message) -> None:
            send.send_nowait(SubjectMessage(subject=message.subject, text=message.data.decode()))

        listener = await ctx.client.bus.connection.listen(self.subject, take, ctx.binding.id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fire, ctx, receive)
            ctx.ready.set()
            await ctx.stopping.wait()
            await listener.close()
            send.close()  # what has come in is run, then this ends

    async def _fire(self, ctx: TriggerContext, receive) -> None:
        async for message in receive:
            await ctx.fire(message)
