"""Finding a training target: one that is installed, or a directory."""

import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

from trine.errors import NotFoundError, UsageError

GROUP = "trine.targets"
_FILE_LIMIT = 512 * 1024
_SKIPPED = {"__pycache__", "node_modules", "runs"}


def locate(target: str) -> Path:
    """Return the directory of an installed target (``nanolm``) or of a path."""
    for entry in entry_points(group=GROUP, name=target):
        spec = importlib.util.find_spec(entry.value)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    place = Path(target)
    if place.is_dir():
        return place
    known = ", ".join(sorted(entry.name for entry in entry_points(group=GROUP)))
    raise NotFoundError(f"no target {target!r}: neither a directory nor one of: {known}")


def read_files(place: Path) -> dict[str, str]:
    """Return the text files below *place* by their relative paths, without hidden ones."""
    files = {}
    for path in sorted(place.rglob("*")):
        relative = path.relative_to(place)
        if any(part.startswith(".") or part in _SKIPPED for part in relative.parts):
            continue
        if not path.is_file() or path.stat().st_size > _FILE_LIMIT:
            continue
        try:
            files[str(relative)] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data: a target makes or finds its own
    if not files:
        raise UsageError(f"target {place}: there are no text files in it")
    return files
