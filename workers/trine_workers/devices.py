"""The devices of this host: GPUs through NVML, else the CPU."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from trine.errors import BadRequestError


@dataclass(frozen=True, slots=True)
class Device:
    """A place where one run trains. ``uuid`` is empty for the CPU."""

    index: int
    name: str
    memory_mb: float
    uuid: str = ""

    @property
    def kind(self) -> str:
        return "gpu" if self.uuid else "cpu"

    def slot_id(self, number: int) -> str:
        """The id in the pool: host and GPU UUID, so that no two hosts share one."""
        host = socket.gethostname().split(".")[0]
        return f"{host}-{self.uuid}-{number}" if self.uuid else f"{host}-cpu-{number}"

    def environment(self, cache: Path) -> dict[str, str]:
        """What a program must see so that it uses this device and no other.

        What is compiled for a kind of GPU is kept below *cache*, for the next run.
        """
        if self.uuid:
            compiled = cache / "compiled" / re.sub(r"[^A-Za-z0-9]+", "-", self.name)
            return {
                "CUDA_VISIBLE_DEVICES": self.uuid,
                "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
                "TRITON_CACHE_DIR": str(compiled / "triton"),
            }
        return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def gpus() -> list[Device]:
    """Return the GPUs that the driver shows; an empty list without driver, GPU or pynvml."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) / 2**20
            uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            found.append(Device(index, _text(pynvml.nvmlDeviceGetName(handle)), memory, uuid))
        return found
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cpu() -> Device:
    """Return the CPU as a device."""
    with open("/proc/meminfo") as lines:  # noqa: PTH123 - not a file on a disk
        total_kb = float(lines.readline().split()[1])
    return Device(0, "CPU", total_kb / 1024)


def select(wanted: str) -> list[Device]:
    """Return the devices that ``auto``, ``cpu`` or ``0,2`` (GPU numbers or UUIDs) means."""
    if wanted == "cpu":
        return [cpu()]
    found = gpus()
    if wanted == "auto":
        return found or [cpu()]
    chosen = []
    for one in wanted.split(","):
        match = [device for device in found if one.strip() in (str(device.index), device.uuid)]
        if not match:
            known = ", ".join(f"{device.index} ({device.uuid})" for device in found) or "none"
            raise BadRequestError(f"no GPU {one!r} here; there are: {known}")
        chosen += match
    return chosen
