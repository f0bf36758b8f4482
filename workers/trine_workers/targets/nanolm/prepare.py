"""The ground that no experiment may change: corpus, batches, clock and metric of nanolm.

    python prepare.py                             # prepare the corpus and say what was done
    NANOLM_CORPUS=/data/books python prepare.py   # another corpus: files or folders, joined by ':'

A token is a byte. The corpus is split by file, so no document has a part on both sides. Prepared
bytes are mapped from $NANOLM_CACHE (default ~/.cache/nanolm), where many workers may ask at once.
"""

import ctypes
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

Model = Callable[[Tensor], Tensor]  # bytes (rows, seq_len) to logits (rows, seq_len, 256)

VOCAB_SIZE = 256
SEQ_LEN = {"cuda": 2048, "cpu": 128}  # context in bytes: part of the metric, so not a knob
EVAL_WINDOWS = 512  # of SEQ_LEN bytes: 1 MiB on a GPU; 64 KiB on the CPU, in one to two seconds
EVAL_ROWS = 64  # windows in one forward pass of the evaluation

VALIDATION_SHARE = 0.05  # of the bytes, in whole files
STDLIB_BYTES = 24_000_000  # of the default corpus; a corpus named by path is taken whole
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
FORMAT = 1  # to be raised when the same files would give other bytes

# Dense bf16 operations per second, for the mfu; 0 for what is not here.
PEAK_FLOPS = {"H100": 989.5e12, "H200": 989.5e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}

# --------------------------------------------------------------------------------------------------
# Corpus: files → train.bin and val.bin, in which a 0 byte separates the files


def corpus_files() -> tuple[str, list[tuple[str, Path]]]:
    """The corpus' name, and its files (relative path, path) in the order of the path's hash."""
    named = os.environ.get("NANOLM_CORPUS")
    roots = (named or sysconfig.get_path("stdlib")).split(os.pathsep)
    files = [file for root in roots for file in _walk(Path(root).expanduser())]
    if not named:
        files = [(name, path) for name, path in files if path.suffix == ".py"]
    files.sort(key=lambda file: (hashlib.sha256(file[0].encode()).digest(), str(file[1])))
    if not named:
        files = _first_bytes(files, STDLIB_BYTES)
    return ("corpus" if named else f"stdlib-{platform.python_version()}"), files


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """The files at or below a root, without hidden ones and installed packages."""
    if root.is_file():
        yield root.name, root
        return
    if not root.is_dir():
        raise FileNotFoundError(f"NANOLM_CORPUS: no such file or folder: {root}")
    for folder, folders, names in os.walk(root):
        folders[:] = [n for n in folders if n not in SKIPPED_FOLDERS and not n.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path


def _first_bytes(files: list[tuple[str, Path]], limit: int) -> list[tuple[str, Path]]:
    """The files in front that hold no more than so many bytes."""
    total = 0
    for count, (_, path) in enumerate(files):
        total += path.stat().st_size
        if total > limit:
            return files[:count]
    return files


def split(texts: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """(train, validation): the files in front, up to the share of the bytes, are the validation.

    One file alone cannot be split by file: its last bytes are the validation.
    """
    wanted = math.ceil(VALIDATION_SHARE * sum(map(len, texts)))
    if len(texts) == 1:
        return [texts[0][:-wanted]], [texts[0][-wanted:]]
    count = held = 0
    while held < wanted and count < len(texts) - 1:
        held += len(texts[count])
        count += 1
    return texts[count:], texts[:count]


def prepared() -> Path:
    """The folder with train.bin, val.bin and meta.json of the corpus, written on first use."""
    name, files = corpus_files()
    stats = [(relative, path.stat().st_size, path.stat().st_mtime_ns) for relative, path in files]
    key = hashlib.sha256(json.dumps([FORMAT, stats]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("NANOLM_CACHE") or "~/.cache/nanolm").expanduser()
    target = cache / f"{name}-{key}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed: who comes second finds it done
            if not target.is_dir():
                _write(target, name, [path.read_bytes() for _, path in files])
    return target


def _write(target: Path, name: str, texts: list[bytes]) -> None:
    texts = [text for text in texts if text and b"\0" not in text]  # a 0 byte: not text
    if not texts:
        raise ValueError("NANOLM_CORPUS: no text")
    meta: dict[str, object] = {"corpus": name}
    scratch = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    try:
        for part, chosen in zip(("train", "val"), split(texts), strict=True):
            data = b"\0".join(chosen)
            if len(data) <= max(SEQ_LEN.values()):
                raise ValueError(f"NANOLM_CORPUS: too small: {len(data)} bytes of {part} data")
            (scratch / f"{part}.bin").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            meta[part] = {"files": len(chosen), "bytes": len(data), "sha256": digest}
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1))
        scratch.rename(target)  # whole or not at all
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(part: str) -> Tensor:
    """The bytes of "train" or "val": (n,) uint8, mapped from the cache."""
    path = prepared() / f"{part}.bin"
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


# --------------------------------------------------------------------------------------------------
# Batches


class Batches:
    """An endless iterator of (inputs, targets), each (rows, seq_len) int64 on the device.

    An epoch cuts the data into windows that do not overlap, from a random start, and shuffles
    them. The order of the windows depends on the seed alone, not on the number of rows.
    """

    def __init__(self, data: Tensor, rows: int, seq_len: int, seed: int, device: str) -> None:
        self.data = data.to(device)
        self.rows, self.seq_len = rows, seq_len
        self.random = torch.Generator().manual_seed(seed)
        self.epoch = 0
        self.starts = torch.empty(0, dtype=torch.int64)  # of the windows still to come

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        while len(self.starts) < self.rows:
            self.starts = torch.cat([self.starts, self._epoch()])
        starts, self.starts = self.starts[: self.rows], self.starts[self.rows :]
        return windows(self.data, starts, self.seq_len)

    def _epoch(self) -> Tensor:
        self.epoch += 1
        spare = len(self.data) - 1 - self.seq_len  # at least 0: _write() sees to it
        phase = int(torch.randint(min(self.seq_len, spare + 1), (1,), generator=self.random))
        count = 1 + (spare - phase) // self.seq_len
        return phase + self.seq_len * torch.randperm(count, generator=self.random)


def windows(data: Tensor, starts: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (rows, seq_len) each: the bytes from each start, and one byte later."""
    offsets = torch.arange(seq_len + 1, device=data.device)
    rows = data[starts.to(data.device)[:, None] + offsets].long()  # (rows, seq_len + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


# --------------------------------------------------------------------------------------------------
# Clock


class Budget:
    """TRAIN_SECONDS of training: CPU time of the process on the CPU, wall time on a GPU.

    CPU time stands still while another process has the core: runs on a shared machine compare.
    """

    def __init__(self, device: str) -> None:
        self.seconds = float(os.environ.get("TRAIN_SECONDS") or 300)
        if not 0 < self.seconds < math.inf:
            raise ValueError("TRAIN_SECONDS must be positive")
        self.cuda = device == "cuda"
        self.spent = self.lap_seconds = 0.0
        self.last = self._now()

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def lap(self) -> float:
        """The seconds since the last lap, now spent."""
        now = self._now()
        self.lap_seconds, self.last = now - self.last, now
        self.spent += self.lap_seconds
        return self.lap_seconds

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.seconds)

    @property
    def over(self) -> bool:
        """One more lap like the last would end farther from the budget than this one did."""
        return self.spent + self.lap_seconds / 2 >= self.seconds


# --------------------------------------------------------------------------------------------------
# Metric


@torch.no_grad()
def evaluate_bpb(model: Model, device: str) -> float:
    """Bits per byte of the validation windows: always the same ones, spread evenly."""
    data, seq_len = load("val").to(device), SEQ_LEN[device]
    available = (len(data) - 1) // seq_len
    count = min(EVAL_WINDOWS, available)
    starts = torch.arange(count) * available // count * seq_len
    nats = torch.zeros((), dtype=torch.float64, device=device)
    for first in range(0, count, EVAL_ROWS):
        x, y = windows(data, starts[first : first + EVAL_ROWS], seq_len)
        logits = model(x).float()
        if first == 0:
            _refuse_lookahead(model, x, logits)
        losses = functional.cross_entropy(
            logits.reshape(-1, VOCAB_SIZE), y.reshape(-1), reduction="none"
        )
        nats += losses.double().sum()
    return nats.item() / math.log(2) / (count * seq_len)


def _refuse_lookahead(model: Model, x: Tensor, logits: Tensor) -> None:
    """A model that sees what it has to predict has a low loss and is worth nothing."""
    half = x.shape[1] // 2
    changed = torch.cat([x[:, :half], (x[:, half:] + 1) % VOCAB_SIZE], dim=1)
    if not torch.allclose(model(changed)[:, :half].float(), logits[:, :half], atol=0.05):
        raise ValueError("logits depend on later bytes, or are not numbers")


# --------------------------------------------------------------------------------------------------
# Machine


def set_up(seed: int) -> str:
    """Seed torch; "cuda" where there is one, else "cpu" with NANOLM_THREADS (1) threads."""
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        return "cuda"
    torch.set_num_threads(int(os.environ.get("NANOLM_THREADS") or 1))
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
        if mallopt is not None:  # keep the pages of freed tensors: faulting them in again is slow
            mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
            mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    return "cpu"


def peak_flops(device: str) -> float:
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for model, peak in PEAK_FLOPS.items() if model in name), 0.0)


if __name__ == "__main__":
    started = time.perf_counter()
    folder = prepared()
    print(f"{folder}  ({time.perf_counter() - started:.1f} s)")
    print((folder / "meta.json").read_text())
