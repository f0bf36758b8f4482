"""Watch: run a function when a file is created, modified or deleted."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel, Field

from trine import Trigger, TriggerContext
from trine.trigger import Placement

Change = Literal["created", "modified", "deleted"]


class FileChange(BaseModel):
    """The payload: which file, and what happened to it."""

    path: str
    change: Change


class Watch(Trigger):
    """``Watch("inbox", "*.csv", on=("created",))``: a file, or the files of a directory.

    Looks every *poll_seconds*, in every replica, at the files of its own host. Changes in quick
    succession are seen as one, and those made while no replica runs are not seen.
    """

    placement: ClassVar[Placement] = "each"

    path: Path
    glob: str = Field(default="*", min_length=1)  # within a directory; **/* for all below
    on: tuple[Change, ...] = ("created", "modified", "deleted")
    poll_seconds: float = Field(default=0.5, ge=0.05, le=3600)

    def __init__(self, path: str | Path, glob: str = "*", **data: Any) -> None:
        super().__init__(path=path, glob=glob, **data)

    async def run(self, ctx: TriggerContext) -> None:
        seen = await anyio.to_thread.run_sync(self._files)
        ctx.ready.set()
        while True:
            await anyio.sleep(self.poll_seconds)
            now = await anyio.to_thread.run_sync(self._files)
            for path in sorted(seen.keys() | now.keys()):
                if seen.get(path) != now.get(path):
                    change: Change = "created" if path not in seen else "modified"
                    change = "deleted" if path not in now else change
                    if change in self.on:
                        await ctx.fire(FileChange(path=path, change=change))
            seen = now

    def _files(self) -> dict[str, tuple[int, int, int]]:
        """What makes each file what it is: when it was modified, its size, its inode."""
        found = {}
        for path in self.path.glob(self.glob) if self.path.is_dir() else [self.path]:
            try:
                stat = path.stat()
            except OSError:
                continue  # gone, or never there
            if not path.is_dir():
                found[str(path)] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return found
