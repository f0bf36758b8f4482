"""The training target nanolm: its data, its metric, its knobs, and real runs on the CPU."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

TARGET = Path(__file__).parents[3] / "workers" / "trine_workers" / "targets" / "nanolm"
CATEGORIES = {
    "architecture",
    "optimizer",
    "hyperparams",
    "attention",
    "embedding",
    "regularization",
    "scheduling",
    "initialization",
}
SUMMARY = [
    "val_bpb",
    "training_seconds",
    "total_seconds",
    "peak_vram_mb",
    "mfu_percent",
    "total_tokens_M",
    "num_steps",
    "num_params_M",
    "depth",
]
PROGRESS = re.compile(
    r"step \d{5} \(\d+\.\d%\) \| loss: \d+\.\d+ \| lrm: \d\.\d\d \| dt: \d+ms"
    r" \| tok/sec: [\d,]+ \| mfu: 0\.0% \| epoch: 1 \| remaining: \d+s"
)
KNOB = re.compile(
    r"^(?P<name>[A-Z][A-Z0-9_]*) = (?P<value>\S+)  # (?P<category>[a-z]+): (?P<space>.+)$"
)
RANGE = re.compile(r"(?P<low>[\d.e+-]+?)\.\.(?P<high>[\d.e+-]+)(?P<log> log)?( pow2| step [\d.]+)?")

# karpathy/autoresearch's values and the ranges of its benchmark.
THERE: dict[str, tuple[Any, ...]] = {
    "DEPTH": (8, 4, 24),
    "ASPECT_RATIO": (64, 32, 128),
    "HEAD_DIM": (128, 64, 256),
    "DEVICE_BATCH_SIZE": (128, 32, 256),
    "TOTAL_BATCH_SIZE": (2**19, 65536, 2097152),
    "EMBEDDING_LR": (0.6, 0.01, 2),
    "UNEMBEDDING_LR": (0.004, 0.0005, 0.05),
    "MATRIX_LR": (0.04, 0.005, 0.2),
    "SCALAR_LR": (0.5, 0.05, 2),
    "WEIGHT_DECAY": (0.2, 0, 0.5),
    "WARMUP_RATIO": (0, 0, 0.3),
    "WARMDOWN_RATIO": (0.5, 0.1, 0.8),
    "FINAL_LR_FRAC": (0, 0, 0.2),
    "WINDOW_PATTERN": ("SSSL", "SSSL", "SSLL", "SLSL", "LLLL", "SSSS", "LSSL"),
}


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanolm_prepare", TARGET / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 texts, named as the corpus, with a cache of its own."""
    folder = tmp_path / "texts"
    for number in range(40):
        path = folder / f"{number % 4}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number}: " + f"line {number}\n" * 200)
    monkeypatch.setenv("NANOLM_CORPUS", str(folder))
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    return folder


def texts(folder: Path, part: str) -> list[bytes]:
    return (folder / f"{part}.bin").read_bytes().split(b"\0")


def test_every_file_is_in_exactly_one_part(prepare: ModuleType, corpus: Path) -> None:
    folder = prepare.prepared()
    train, validation = texts(folder, "train"), texts(folder, "val")
    originals = [path.read_bytes() for path in corpus.rglob("*.txt")]
    assert sorted(train + validation) == sorted(originals)
    share = sum(map(len, validation)) / sum(map(len, originals))
    assert 0.05 <= share < 0.1


def test_the_split_depends_on_names_not_on_the_place(
    prepare: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare.prepared()
    moved = tmp_path / "elsewhere"
    shutil.copytree(corpus, moved, copy_function=shutil.copyfile)  # with new times
    monkeypatch.setenv("NANOLM_CORPUS", str(moved))
    second = prepare.prepared()
    assert first != second
    assert texts(first, "val") == texts(second, "val")
    assert texts(first, "train") == texts(second, "train")


def test_a_single_file_is_split_at_its_end(
    prepare: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(bytes(range(1, 251)) * 400)
    monkeypatch.setenv("NANOLM_CORPUS", str(path))
    assert (
        bytes(prepare.load("train").numpy()) + bytes(prepare.load("val").numpy())
        == path.read_bytes()
    )
    assert len(prepare.load("val")) == 5000


def test_binary_and_hidden_files_are_left_out(prepare: ModuleType, corpus: Path) -> None:
    (corpus / "image.png").write_bytes(b"image\0" * 1000)
    (corpus / ".hidden").write_text("hidden" * 1000)
    folder = prepare.prepared()
    assert not any(
        b"image" in text or b"hidden" in text
        for text in texts(folder, "train") + texts(folder, "val")
    )


def test_a_missing_or_tiny_corpus_is_refused_and_leaves_nothing(
    prepare: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("tiny")
    monkeypatch.setenv("NANOLM_CORPUS", str(tiny))
    with pytest.raises(ValueError, match="too small"):
        prepare.prepared()
    monkeypatch.setenv("NANOLM_CORPUS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare.prepared()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_preparing_at_once_is_done_once(
    prepare: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], prepare._write
    together = threading.Barrier(4)

    def counted(*arguments: Any) -> None:
        written.append(arguments)
        write(*arguments)

    def work() -> None:
        together.wait(10)
        prepare.prepared()

    monkeypatch.setattr(prepare, "_write", counted)
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert len(written) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_the_order_of_batches_depends_on_the_seed_alone(prepare: ModuleType) -> None:
    data = torch.randint(256, (5000,), dtype=torch.uint8)

    def inputs(rows: int, seed: int) -> torch.Tensor:
        batches = prepare.Batches(data, rows, 16, seed, "cpu")
        return torch.cat([next(batches)[0] for _ in range(480 // rows)])  # more than an epoch

    assert torch.equal(inputs(8, 1), inputs(32, 1))
    assert not torch.equal(inputs(8, 1), inputs(8, 2))


def test_targets_are_the_inputs_one_byte_later(prepare: ModuleType) -> None:
    data = torch.arange(129, dtype=torch.uint8)  # one window, exactly
    x, y = next(prepare.Batches(data, 2, 128, 1, "cpu"))
    assert x.tolist() == [list(range(128))] * 2
    assert torch.equal(y, x + 1)


def test_a_uniform_model_needs_eight_bits_for_a_byte(prepare: ModuleType, corpus: Path) -> None:
    bpb = prepare.evaluate_bpb(lambda x: torch.zeros(*x.shape, 256), "cpu")
    assert bpb == pytest.approx(8, abs=1e-6)


def test_a_model_that_sees_ahead_is_refused(prepare: ModuleType, corpus: Path) -> None:
    def peeking(x: torch.Tensor) -> torch.Tensor:
        return 9.0 * torch.nn.functional.one_hot(x.roll(-1, dims=1), 256)

    with pytest.raises(ValueError, match="later bytes"):
        prepare.evaluate_bpb(peeking, "cpu")


def test_the_budget_is_cpu_time(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = iter([10.0, 11.0, 13.0])
    monkeypatch.setattr(prepare.time, "process_time", lambda: next(cpu))
    monkeypatch.setenv("TRAIN_SECONDS", "4")
    budget = prepare.Budget("cpu")
    assert (budget.lap(), budget.progress, budget.over) == (1, 0.25, False)
    assert (budget.lap(), budget.progress, budget.over) == (2, 0.75, True)  # 5 is no nearer to 4


def test_every_knob_states_karpathys_value_and_range() -> None:
    knobs: dict[str, tuple[Any, ...]] = {}
    for line in (TARGET / "train.py").read_text().splitlines():
        if not (match := KNOB.match(line)):
            continue
        space = match["space"].split(" -- ")[0]
        assert match["category"] in CATEGORIES, line
        if found := RANGE.fullmatch(space):
            value, low, high = float(match["value"]), float(found["low"]), float(found["high"])
            assert low <= value <= high, line
            assert low > 0 or not found["log"], line
            knobs[match["name"]] = (value, low, high)
        else:
            choices = space.split(" | ")
            assert len(choices) > 1, line
            assert match["value"].strip('"') in choices, line
            knobs[match["name"]] = (match["value"].strip('"'), *choices)
    assert knobs == THERE


def start(folder: Path, cache: Path, **knobs: float) -> "subprocess.Popen[bytes]":
    """A run of one second in a copy, in which knobs are replaced as a search would do it."""
    shutil.copytree(TARGET, folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = (folder / "train.py").read_text()
    for name, value in knobs.items():
        code, count = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value}", code)
        assert count == 1
    (folder / "train.py").write_text(code)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=folder,
        env=environment
        | {"TRAIN_SECONDS": "1", "NANOLM_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Two programs that start at once on a machine that has no corpus yet: a good and a bad one."""
    folder = tmp_path_factory.mktemp("runs")
    good = start(folder / "good", folder / "cache", TOTAL_BATCH_SIZE=65536)
    bad = start(folder / "bad", folder / "cache", MATRIX_LR=1e30)
    good_output = good.communicate(timeout=50)[0].decode()
    bad_output = bad.communicate(timeout=50)[0].decode()
    assert good.returncode == 0, good_output
    assert bad.returncode == 1, bad_output
    return folder, good_output, bad_output


def test_a_second_of_training_beats_counting_bytes(outputs: tuple[Path, str, str]) -> None:
    folder, output, _ = outputs
    progress, summary = output.split("\n---\n")
    values = dict(re.findall(r"^(\w+): +([\d.]+)$", summary, flags=re.MULTILINE))
    assert list(values) == SUMMARY
    assert re.fullmatch(r"\d\.\d{6}", values["val_bpb"])
    assert 0.8 < float(values["training_seconds"]) < 1.2
    assert values["depth"] == "8"
    assert float(values["total_tokens_M"]) == pytest.approx(
        int(values["num_steps"]) * 512e-6, abs=0.001
    )

    (held_out,) = folder.glob("cache/stdlib-*/val.bin")
    data = held_out.read_bytes()
    unigram = -sum(n / len(data) * math.log2(n / len(data)) for n in Counter(data).values())
    assert 1 < float(values["val_bpb"]) < unigram

    lines = progress.strip().split("\r")
    assert all(PROGRESS.fullmatch(line.strip()) for line in lines)
    assert lines[0].startswith("step 00001 ")
    assert int(lines[-1].split()[1]) == int(values["num_steps"])


def test_a_loss_that_is_no_number_ends_the_run(outputs: tuple[Path, str, str]) -> None:
    assert outputs[2].endswith("\nFAIL: loss is nan\n")
    assert "val_bpb" not in outputs[2]


def test_programs_that_start_at_once_share_one_corpus(outputs: tuple[Path, str, str]) -> None:
    (prepared,) = (path for path in (outputs[0] / "cache").iterdir() if path.is_dir())
    assert {path.name for path in prepared.iterdir()} == {"train.bin", "val.bin", "meta.json"}
