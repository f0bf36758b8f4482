"""Telling callees that we still wait, so that the calls of a caller that died are ended.

A process with calls that have been waiting for a while says so every two seconds, for all of them
in one message. A worker ends the calls of a process that it has not heard for seven.
"""

import asyncio
import contextlib
import re

from trine import invocation
from trine.errors import TrineError
from trine.transport.connection import Connection
from trine.wire import Names

BEAT_SECONDS = 2.0
SILENT_SECONDS = 7.0
_OURS = re.compile(r"([0-9a-f]{12})-[0-9]+")


class Calling:
    """The calls of one connection that wait for an answer; costs two additions a call."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._subject = names.alive(invocation.PROCESS)
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """Count a call that begins."""
        self._waiting += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(BEAT_SECONDS, self._beat, loop)

    def leave(self) -> None:
        """Count a call that has ended."""
        self._waiting -= 1

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._waiting or self._connection.is_closed:
            return
        with contextlib.suppress(TrineError):  # away: callees wait for us after a reconnect
            self._connection.send(self._subject)
        self._timer = loop.call_later(BEAT_SECONDS, self._beat, loop)


def caller(invocation_id: str) -> str | None:
    """Return the process that made *invocation_id*, if it is one of those that tell."""
    found = _OURS.fullmatch(invocation_id)
    return found[1] if found else None
