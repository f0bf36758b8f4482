"""Timers of which nearly none runs out: one timer of the event loop serves them all."""

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("trine")


class Deadlines:
    """Calls back when a time is over, unless it is discarded before; discarding costs nothing.

    A timer of the event loop for each call costs as much as parsing its reply.
    """

    def __init__(self) -> None:
        self._calls: dict[int, tuple[Callable[[Any], None], Any]] = {}
        self._heap: list[tuple[float, int]] = []  # also of what was discarded
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0  # when the timer fires

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, seconds: float, callback: Callable[[Any], None], argument: Any) -> int:
        """Call *callback* with *argument* after *seconds*; return the number to discard it by."""
        self._number = number = self._number + 1
        when = time.monotonic() + seconds
        self._calls[number] = (callback, argument)
        heap = self._heap
        heapq.heappush(heap, (when, number))
        if self._timer is None or when < self._armed:
            self._arm(when)
        if len(heap) > 4 * len(self._calls) + 64:
            heap[:] = [entry for entry in heap if entry[1] in self._calls]
            heapq.heapify(heap)
        return number

    def discard(self, number: int) -> None:
        """Forget the callback, if it was not called yet."""
        self._calls.pop(number, None)

    def close(self) -> None:
        """Forget all of them."""
        self._calls.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = when
        delay = max(0.001, when - time.monotonic())  # uvloop rounds to milliseconds, also down
        self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        heap, calls = self._heap, self._calls
        now = time.monotonic()
        while heap and (heap[0][0] <= now or heap[0][1] not in calls):
            call = calls.pop(heapq.heappop(heap)[1], None)
            if call is None:
                continue
            callback, argument = call
            try:
                callback(argument)
            except Exception:
                log.exception("deadline_callback_failed")
        if heap and (self._timer is None or heap[0][0] < self._armed):
            self._arm(heap[0][0])
