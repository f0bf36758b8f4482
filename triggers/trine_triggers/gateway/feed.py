"""The durable events as a stream: from now, or from the sequence after the one last seen."""

import contextlib
import itertools
import re
from collections.abc import AsyncGenerator
from typing import Any

import anyio

from trine import wire
from trine.bus import Bus
from trine.consuming.consumer import Delivery
from trine.errors import InvalidInputError, TrineError, UnavailableError
from trine.invocation import new_id
from trine.transport.connection import Msg
from trine_triggers.gateway.streaming import Item

_TYPE = re.compile(r"([a-z][a-z0-9_]*|\*)(\.([a-z0-9_]+|\*))*")
_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
_BATCH = 256  # what is asked for at once, and so what is in memory
_EXPIRES_SECONDS = 20.0
_HEARTBEAT_SECONDS = 5.0
_AGAIN_SECONDS = 0.5
_NS = 1_000_000_000
_LARGEST = 2**63


def parse_sequence(text: str) -> int:
    """Return the sequence that a client has seen last; `InvalidInputError` when it is none."""
    if not text.isascii() or not text.isdigit() or int(text[:30]) >= _LARGEST:
        raise InvalidInputError("Last-Event-ID is the number of an event", last_event_id=text[:64])
    return int(text)


class Feed:
    """The events of some types, and of one key, in the order of their stream."""

    def __init__(self, bus: Bus, types: list[str], key: str | None, after: int | None) -> None:
        for one in types:
            if not _TYPE.fullmatch(one):
                raise InvalidInputError(f"type {one[:64]!r}: lower-case words, * for any word")
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidInputError(f"key {key[:64]!r}: letters, digits, - / _ = and single dots")
        self._bus = bus
        self._types = [one.split(".") for one in dict.fromkeys(types)]
        self._key = key
        self._after = after  # None: from now on
        self._name = f"feed-{new_id()}"
        # The server refuses filters that overlap: then all events come, and are looked at here.
        apart = types and not _overlap(self._types)
        self._filters = [
            bus.names.event(one, key, "*") if apart and key else bus.names.events_below(one)
            for one in (dict.fromkeys(types) if apart else ["*"])
        ]

    async def items(self) -> AsyncGenerator[Item, None]:
        """Give the events until closed. What is gone from the stream is told by an event ``gap``.

        The next ones are asked for when those before were taken: a slow reader holds up nobody and
        fills no memory. A server that was away is asked again from where we are.
        """
        if self._after:
            first = (await self._info())["state"]["first_seq"]
            if first > self._after + 1:
                told = {"from": self._after + 1, "to": first - 1}
                yield Item(wire.dumps(told), str(first - 1), "gap")
        try:
            while True:
                try:
                    if self._after is None:
                        self._after = (await self._info())["state"]["last_seq"]
                    await self._create()
                    async for item in self._consume():
                        yield item
                except UnavailableError:
                    await anyio.sleep(_AGAIN_SECONDS)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._delete()

    async def _info(self) -> dict[str, Any]:
        return await self._bus.api(f"STREAM.INFO.{self._bus.names.events}")

    async def _create(self) -> None:
        stream = self._bus.names.events
        config: dict[str, Any] = {
            "name": self._name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": (self._after or 0) + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": int(3 * _EXPIRES_SECONDS * _NS),
            "mem_storage": True,
            "num_replicas": 1,
        }
        if len(self._filters) == 1:
            config["filter_subject"] = self._filters[0]
        else:
            config["filter_subjects"] = self._filters
        await self._delete()
        await self._bus.api(
            f"CONSUMER.CREATE.{stream}.{self._name}", {"stream_name": stream, "config": config}
        )

    async def _delete(self) -> None:
        try:
            await self._bus.api(f"CONSUMER.DELETE.{self._bus.names.events}.{self._name}")
        except TrineError:
            return  # there is none, or it goes by itself

    async def _consume(self) -> AsyncGenerator[Item, None]:
        """Give events until the consumer is lost."""
        connection, names = self._bus.connection, self._bus.names
        body = wire.dumps(
            {
                "batch": _BATCH,
                "expires": int(_EXPIRES_SECONDS * _NS),
                "idle_heartbeat": int(_HEARTBEAT_SECONDS * _NS),
            }
        )
        send, receive = anyio.create_memory_object_stream[Msg | None](2 * _BATCH)

        def offer(message: Msg | None = None) -> None:
            with contextlib.suppress(anyio.WouldBlock, anyio.ClosedResourceError):
                send.send_nowait(message)  # what does not fit was not asked for

        inbox = connection.new_inbox()  # of its own: stored messages come under their own subject
        listener = await connection.listen(inbox, offer)
        connection.on_reconnect.add(offer)
        try:
            asked = 0
            while True:
                if asked == 0:
                    pull = f"$JS.API.CONSUMER.MSG.NEXT.{names.events}.{self._name}"
                    connection.send(pull, body, inbox)
                    asked = _BATCH
                message = None
                with anyio.move_on_after(2.5 * _HEARTBEAT_SECONDS):
                    message = await receive.receive()
                if message is None:
                    return  # the server was away, or has lost the consumer
                status = (message.headers or {}).get(wire.STATUS)
                if status is None:
                    asked -= 1
                    item = self._item(Delivery.of(message))
                    if item is not None:
                        yield item
                elif status in ("404", "408"):
                    asked = 0
                elif status != "100":
                    return
        finally:
            connection.on_reconnect.discard(offer)
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()
            send.close()
            receive.close()

    def _item(self, delivery: Delivery) -> Item | None:
        self._after = delivery.sequence
        kind = delivery.headers.get("ce-type", "")
        if self._types and not any(_fits(one, kind.split(".")) for one in self._types):
            return None
        if self._key is not None:
            below = self._bus.names.events_below(kind).removesuffix(">")
            if delivery.subject.removeprefix(below).rpartition(".")[0] != self._key:
                return None
        return Item(delivery.payload, str(delivery.sequence), kind or "message")


def _fits(pattern: list[str], words: list[str]) -> bool:
    return len(pattern) == len(words) and all(
        wanted in ("*", word) for wanted, word in zip(pattern, words, strict=True)
    )


def _overlap(patterns: list[list[str]]) -> bool:
    return any(
        all(a == b or "*" in (a, b) for a, b in zip(one, other, strict=False))
        for one, other in itertools.combinations(patterns, 2)
    )
