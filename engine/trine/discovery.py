"""How a program finds the server: ``TRINE_NATS``, or the note that ``trine up`` leaves."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from trine.errors import UnavailableError

NOTE = "server.json"


def write_note(store: Path, facts: dict[str, Any]) -> None:
    """Leave the address of a running system in its store, whole or not at all."""
    scratch = store / f".{NOTE}.{os.getpid()}"
    scratch.write_text(json.dumps(facts))
    scratch.replace(store / NOTE)


def read_note(store: Path) -> dict[str, Any] | None:
    """Return the note of a system that is alive; None when there is none, or it has ended."""
    try:
        facts: dict[str, Any] = json.loads((store / NOTE).read_text())
        with contextlib.suppress(PermissionError):  # alive, and somebody else's
            os.kill(int(facts["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return None
    return facts


def shown(url: str) -> str:
    """Return *url* as it may be printed and logged: without credentials."""
    return re.sub(r"(?<=://)[^@/,]*@", "", url)


def server_url(store: Path | None = None) -> str:
    """Return the URL of the server to use; `UnavailableError` says how to get one."""
    if url := os.environ.get("TRINE_NATS"):
        return url
    place = store or Path(os.environ.get("TRINE_STORE", ".trine"))
    note = read_note(place)
    if note is None:
        raise UnavailableError(
            f"no running system in {place}: start `trine up` here, or name a server"
            " with --nats URL or TRINE_NATS"
        )
    return str(note["nats"])
