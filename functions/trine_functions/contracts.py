"""What functions and workers agree on: records, scopes, jobs and events of the research system."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trine import EventModel, Scope

Category = Literal[
    "architecture", "optimizer", "hyperparams", "activation", "attention", "embedding",
    "normalization", "regularization", "scheduling", "initialization", "simplification",
    "combination", "ablation", "other",
]  # fmt: skip
CATEGORIES: tuple[str, ...] = Category.__args__  # type: ignore[attr-defined]
Status = Literal["running", "keep", "discard", "crash"]
Phase = Literal["queued", "running", "finished"]
CrashClass = Literal[
    "error", "oom", "nan", "no_metric", "timeout", "killed", "lost", "cancelled", "refused"
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bpb = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
TagName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$")]
KnobValue = bool | int | float | str

TRAIN_QUEUE = "train"
TRAIN_ACK_SECONDS = 15.0  # a killed worker's experiment goes on elsewhere after this
SLOT_TTL_SECONDS = 15.0
MAX_ATTEMPTS = 3  # an experiment whose workers died this often is a crash of class `lost`


def now() -> str:
    return datetime.now(UTC).isoformat()


class Metrics(BaseModel):
    """What a training run reports, under the names of its summary."""

    val_bpb: Bpb
    peak_vram_mb: Number | None = None
    training_seconds: Number | None = None
    total_tokens_m: Number | None = None
    mfu_percent: Number | None = None
    num_steps: Number | None = None
    num_params_m: Number | None = None
    depth: Number | None = None


class Blob(BaseModel):
    """A file of a tree, by the hash of its content in the object store."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int


class Tree(BaseModel):
    """Files by their relative paths. The hash of a tree is that of its JSON, its own object."""

    files: dict[str, Blob]

    def encode(self) -> bytes:
        ordered = Tree(files=dict(sorted(self.files.items())))
        return ordered.model_dump_json().encode()


class Target(BaseModel):
    """What the workers train: a tree of files by hash, a command, and its limits in seconds."""

    name: str
    tree: str
    command: str
    editable: str = "train.py"
    budget_seconds: float = Field(gt=0)  # TRAIN_SECONDS of the run: training alone
    startup_seconds: float = Field(default=120, gt=0)  # allowed beside the training itself
    requirement: str = "any"


class Tag(BaseModel):
    """A research line, with its counters."""

    name: str
    branch: str
    created_at: str
    best_val_bpb: float | None = None
    total_experiments: int = 0
    kept_experiments: int = 0
    discarded_experiments: int = 0
    crashed_experiments: int = 0
    consecutive_crashes: int = 0
    rule: Literal["greedy"] = "greedy"
    target: Target | None = None


class Experiment(BaseModel):
    """One experiment. ``status`` has the four values that agents know; the rest is beside it."""

    id: str
    tag: str
    parent_id: str | None = None
    commit_sha: str = ""
    description: str = ""
    hypothesis: str = ""
    category: str = "other"
    diff_summary: str = ""
    status: Status = "running"
    gpu_id: str = "gpu-0"
    started_at: str = ""
    finished_at: str | None = None
    error: str | None = None
    val_bpb: float | None = None
    peak_vram_mb: float | None = None
    training_seconds: float | None = None
    total_tokens_m: float | None = None
    mfu_percent: float | None = None
    num_steps: float | None = None
    num_params_m: float | None = None
    depth: float | None = None
    # Of experiments that the workers run.
    phase: Phase = "running"
    attempt: int = 0  # raised by whoever takes the job: it fences every later write
    tree: str | None = None
    knobs: dict[str, KnobValue] = {}  # against the base tree of the tag
    operator: str = ""
    worker: str = ""
    run_started_at: str | None = None
    crash_class: CrashClass | None = None
    log: str | None = None  # object: the log of the attempt that counted
    verdict: dict[str, Any] | None = None  # the reply, for a call that is repeated


class Best(BaseModel):
    experiment_id: str
    val_bpb: float
    commit_sha: str
    updated_at: str


class Link(BaseModel):
    """An experiment of a tag: the key is ``<tag>.<experiment id>``."""

    experiment_id: str
    parent_id: str | None = None


class NearMiss(BaseModel):
    experiment_id: str
    tag: str
    val_bpb: float
    delta: float
    hypothesis: str
    category: str
    diff_summary: str


class Crash(BaseModel):
    experiment_id: str
    tag: str
    error: str
    crash_class: CrashClass
    at: str


class Gpu(BaseModel):
    """A device of the pool. ``managed`` ones belong to a worker, which takes jobs by itself."""

    id: str
    name: str
    gpu_index: int
    gpu_name: str
    vram_mb: float
    status: Literal["idle", "training", "offline"] = "idle"
    current_experiment_id: str | None = None
    registered_at: str
    last_heartbeat: str
    managed: bool = False
    worker: str = ""


class Strategy(BaseModel):
    mode: Literal["explore", "exploit", "combine", "ablation"] = "explore"
    explore_ratio: float = Field(default=0.7, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    updated_at: str = ""
    reason: str = "initial strategy"
    held: bool = False  # set by hand: `search.adapt` leaves it


class LoopState(BaseModel):
    """The autonomous loop of a tag."""

    tag: str
    status: Literal["running", "paused", "stopped", "finished"]
    experiments: int  # how many in all
    parallel: int
    seed: int
    started_at: str
    ended_at: str | None = None
    reason: str = ""  # why it does what it does now


experiments: Scope[Experiment] = Scope("experiments", Experiment, changes=True)
lineage: Scope[Link] = Scope("lineage", Link, changes=True)
best: Scope[Best] = Scope("best", Best, changes=True)
near_misses: Scope[NearMiss] = Scope("near_misses", NearMiss, changes=True)
gpu_pool: Scope[Gpu] = Scope("gpu_pool", Gpu, changes=True)
strategy: Scope[Strategy] = Scope("strategy", Strategy, changes=True)
tags: Scope[Tag] = Scope("tags", Tag, changes=True)
crashes: Scope[Crash] = Scope("crashes", Crash, changes=True)
loops: Scope[LoopState] = Scope("loops", LoopState, changes=True)


class TrainJob(BaseModel):
    """The body of a job in the queue ``train``."""

    model_config = ConfigDict(frozen=True)

    experiment_id: str
    tag: str
    tree: str
    command: str
    budget_seconds: float
    startup_seconds: float


class ExperimentProgress(EventModel, type="experiment.progress", key="experiment_id"):
    """Emitted at most twice a second while a run trains."""

    experiment_id: str
    tag: str
    attempt: int
    gpu_id: str
    step: int
    progress: float  # share of the budget, 0 to 1
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu_percent: float | None = None
    remaining_seconds: float | None = None
    printed_at: float  # unix seconds, by the worker's clock


class ExperimentStarted(EventModel, type="experiment.started", key="experiment_id"):
    experiment_id: str
    tag: str
    attempt: int
    gpu_id: str
    worker: str


class ExperimentFinished(EventModel, type="experiment.finished", key="experiment_id"):
    """A worker's report, emitted before it acknowledges the job."""

    experiment_id: str
    tag: str
    attempt: int
    gpu_id: str
    outcome: Literal["success", "crash", "timeout"]
    metrics: Metrics | None = None
    error: str | None = None
    crash_class: CrashClass | None = None
    log: str | None = None
    wall_seconds: float = 0


class ExperimentCompleted(EventModel, type="experiment.completed", key="experiment_id"):
    """The ledger's verdict, emitted in the transaction that recorded it; also for crashes."""

    experiment_id: str
    tag: str
    status: Status
    val_bpb: float | None
    improved: bool
    delta: float | None
    best_val_bpb: float | None
