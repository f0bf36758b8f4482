"""A watch over the event loop: a handler that blocks it is named in the log while it does."""

import sys
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

import anyio
import structlog
from anyio.abc import TaskStatus

from trine.function import Function

log = structlog.get_logger("trine")

_BEAT_SECONDS = 0.25


class Watchdog:
    """Warns once for each time that nothing else could run for *seconds*, or half of it more.

    Sync handlers run in threads: they do not block the loop, and are not warned about.
    """

    def __init__(self, functions: Iterable[Function[Any, Any]], seconds: float = 1.0) -> None:
        self._handlers = {
            function.handler.__code__: function.id
            for function in functions
            if hasattr(function.handler, "__code__")
        }
        self._seconds = seconds
        self._beat = time.monotonic()
        self._loop_thread = 0
        self._ended = threading.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        watcher = threading.Thread(target=self._watch, name="trine-watchdog", daemon=True)
        watcher.start()
        task_status.started()
        try:
            while True:
                await anyio.sleep(_BEAT_SECONDS)
                self._beat = time.monotonic()
        finally:
            self._ended.set()

    def _watch(self) -> None:
        warned = 0.0
        while not self._ended.wait(_BEAT_SECONDS):
            beat = self._beat
            if time.monotonic() - beat > self._seconds + _BEAT_SECONDS and beat != warned:
                warned = beat
                frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the one way
                function, place = self._name(frame)
                log.warning(
                    "event_loop_blocked",
                    function=function,
                    at=place,
                    hint="await, make the handler `def` (runs in a thread), or use processes",
                )

    def _name(self, frame: FrameType | None) -> tuple[str, str]:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"
        while frame is not None:
            if frame.f_code in self._handlers:
                return self._handlers[frame.f_code], place
            frame = frame.f_back
        return "?", place
