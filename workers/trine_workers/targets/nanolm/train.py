# Longer than 300 lines: knobs, model, optimizer and loop stand in the one file that may be edited.
"""Train a small GPT on bytes for a fixed time; what lowers val_bpb is kept. The one file to edit.

    python train.py                     # 300 seconds of training, on a GPU where there is one
    TRAIN_SECONDS=6 python train.py     # as long as a CPU needs to show something

A knob is an upper-case constant whose comment states its category and range (see program.md).
The values are karpathy/autoresearch's, meant for a GPU; scaled_for_cpu() derives a small model.
"""
# ruff: noqa: E402 -- the clock starts before the imports, which are most of a start

import time

STARTED = time.perf_counter()

import gc
import math
import resource
import sys
from dataclasses import dataclass, replace
from typing import cast

import torch
from prepare import (
    SEQ_LEN,
    VOCAB_SIZE,
    Batches,
    Budget,
    Model,
    evaluate_bpb,
    load,
    peak_flops,
    set_up,
)
from torch import Tensor, nn
from torch.nn import functional

# --------------------------------------------------------------------------------------------------
# Knobs: what matters most in a short budget first

TOTAL_BATCH_SIZE = 524288  # hyperparams: 65536..2097152 log pow2 -- tokens per optimizer step
MATRIX_LR = 0.04  # optimizer: 0.005..0.2 log -- Muon
EMBEDDING_LR = 0.6  # optimizer: 0.01..2.0 log -- AdamW
UNEMBEDDING_LR = 0.004  # optimizer: 0.0005..0.05 log -- AdamW
SCALAR_LR = 0.5  # optimizer: 0.05..2.0 log -- AdamW, the residual mix of each layer
DEPTH = 8  # architecture: 4..24 step 4 -- layers
ASPECT_RATIO = 64  # architecture: 32..128 step 16 -- width = layers * ASPECT_RATIO
HEAD_DIM = 128  # attention: 64..256 log pow2
WINDOW_PATTERN = "SSSL"  # attention: SSSL | SSLL | SLSL | LLLL | SSSS | LSSL -- S half context
WARMDOWN_RATIO = 0.5  # scheduling: 0.1..0.8 -- share of the budget in which the LR falls
WARMUP_RATIO = 0.0  # scheduling: 0.0..0.3
FINAL_LR_FRAC = 0.0  # scheduling: 0.0..0.2
WEIGHT_DECAY = 0.2  # regularization: 0.0..0.5 -- Muon, falls to 0 with progress
DEVICE_BATCH_SIZE = 128  # hyperparams: 32..256 log pow2 -- sequences in one pass: speed and memory

SEED = 42
COMPILE = True  # on a GPU only
ADAM_BETAS = (0.8, 0.95)
MUON_MOMENTUM = 0.95
SOFTCAP = 15.0  # logits stay within ±15

# --------------------------------------------------------------------------------------------------
# Shape


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a step; tokens = rows * passes * seq_len."""

    layers: int
    aspect: int
    head_dim: int
    seq_len: int
    step_tokens: int
    rows: int  # sequences in one pass

    @property
    def width(self) -> int:
        """The next multiple of the head size."""
        return math.ceil(self.layers * self.aspect / self.head_dim) * self.head_dim

    @property
    def pass_rows(self) -> int:
        """No more sequences in a pass than a step has."""
        return max(1, min(self.rows, self.step_tokens // self.seq_len))

    @property
    def passes(self) -> int:
        return max(1, self.step_tokens // (self.pass_rows * self.seq_len))


def scaled_for_cpu(shape: Shape) -> Shape:
    """A step of about 1e-4 of the work, as a core is to a GPU: the rules of program.md."""
    return replace(
        shape,
        layers=max(1, shape.layers // 4),
        head_dim=shape.head_dim // 4,
        seq_len=SEQ_LEN["cpu"],  # 2048 / 16
        step_tokens=shape.step_tokens // 128,
        rows=max(1, shape.rows // 8),
    )


# --------------------------------------------------------------------------------------------------
# Model


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain."""
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    return x * scale.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: turn each pair (i, i + half) of x (rows, heads, T, head_dim); cos, sin (T, half)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class Block(nn.Module):
    """Attention, then a 4x wide MLP with squared ReLU."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        rows, seq_len, width = x.shape
        heads = (rows, seq_len, width // self.head_dim, self.head_dim)
        h = norm(x)
        parts = (self.query, self.key, self.value)
        q, k, v = (part(h).view(heads).transpose(1, 2) for part in parts)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))  # (rows, heads, T, head_dim)
        y = functional.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, is_causal=mask is None
        )
        x = x + self.out(y.transpose(1, 2).reshape(rows, seq_len, width))
        return x + cast(Tensor, self.down(functional.relu(self.up(norm(x))).square()))


class GPT(nn.Module):
    """Bytes (rows, T) to logits (rows, T, 256)."""

    cos: Tensor
    sin: Tensor
    mask: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, layers, seq_len = shape.width, shape.layers, shape.seq_len
        self.embedding = nn.Embedding(VOCAB_SIZE, width)
        self.blocks = nn.ModuleList(Block(width, shape.head_dim) for _ in range(layers))
        self.unembedding = nn.Linear(width, VOCAB_SIZE, bias=False)
        self.residual = nn.Parameter(torch.ones(layers))  # a layer starts from residual * x
        self.input = nn.Parameter(torch.full((layers,), 0.1))  # + input * (embedded bytes)
        # Layer i has letter i of the pattern; the last layer always sees the whole context.
        letters = (WINDOW_PATTERN * layers)[: layers - 1] + "L"
        self.local = [letter == "S" for letter in letters]

        speeds = 10000.0 ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(seq_len), speeds)  # (T, head_dim / 2)
        ones = torch.ones(seq_len, seq_len, dtype=torch.bool)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("mask", ones.tril() & ones.triu(-seq_len // 2), persistent=False)
        self._initialize(width)

    def _initialize(self, width: int) -> None:
        """Each block starts as the identity: what it adds to the residual is 0."""
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.unembedding.weight, std=0.001)
        bound = math.sqrt(3 / width)  # uniform with a standard deviation of 1 / sqrt(width)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(weight)
            else:
                nn.init.uniform_(weight, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        x = first = norm(self.embedding(tokens))  # (rows, T, width)
        for i, block in enumerate(self.blocks):
            x = self.residual[i] * x + self.input[i] * first
            x = block(x, self.cos, self.sin, self.mask if self.local[i] else None)
        return SOFTCAP * torch.tanh(self.unembedding(norm(x)).float() / SOFTCAP)


# --------------------------------------------------------------------------------------------------
# Optimizer: Muon for the matrices of the blocks, AdamW (without decay) for the rest. Written out,
# because torch.optim imports the machinery of torch.compile, which would double a short start.


def orthogonalized(x: Tensor) -> Tensor:
    """Each matrix of x (n, rows, cols) with its singular values near 1: Newton-Schulz, 5 steps."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonalized(x.mT).mT
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x


class Muon:
    """Matrices of one shape, stepped together along the orthogonalized momentum."""

    def __init__(self, weights: list[Tensor], lr: float) -> None:
        self.weights = weights
        rows, cols = weights[0].shape
        self.lr = lr * max(1.0, rows / cols) ** 0.5
        self.momentum = torch.zeros(len(weights), rows, cols, device=weights[0].device)

    def step(self, lrm: float, decay: float) -> None:
        grad = torch.stack([cast(Tensor, weight.grad) for weight in self.weights])
        self.momentum.lerp_(grad, 1 - MUON_MOMENTUM)
        update = orthogonalized(grad.lerp(self.momentum, MUON_MOMENTUM)).float()  # Nesterov
        for weight, change in zip(self.weights, update, strict=True):
            # Decay only where it agrees with the update.
            weight -= self.lr * lrm * (change + decay * weight * (change * weight >= 0))


class Adam:
    """One tensor."""

    def __init__(self, weight: Tensor, lr: float, betas: tuple[float, float] = ADAM_BETAS) -> None:
        self.weight, self.lr, self.betas = weight, lr, betas
        self.mean, self.square = torch.zeros_like(weight), torch.zeros_like(weight)
        self.steps = 0

    def step(self, lrm: float) -> None:
        grad = cast(Tensor, self.weight.grad)
        self.steps += 1
        self.mean.lerp_(grad, 1 - self.betas[0])
        self.square.lerp_(grad.square(), 1 - self.betas[1])
        mean = self.mean / (1 - self.betas[0] ** self.steps)
        root = (self.square / (1 - self.betas[1] ** self.steps)).sqrt()
        self.weight -= self.lr * lrm * mean / (root + 1e-10)


class Optimizer:
    def __init__(self, model: GPT, width: int) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in model.blocks.parameters():
            by_shape.setdefault(weight.shape, []).append(weight)
        self.weights = list(model.parameters())
        self.muon = [Muon(weights, MATRIX_LR) for weights in by_shape.values()]
        scale = (width / 768) ** -0.5  # nanochat's rates were found at a width of 768
        self.adam = [
            Adam(model.embedding.weight, EMBEDDING_LR * scale),
            Adam(model.unembedding.weight, UNEMBEDDING_LR * scale),
            Adam(model.residual, SCALAR_LR * 0.01),  # multiplies at every layer: a hundredth
            Adam(model.input, SCALAR_LR, (0.96, 0.95)),
        ]

    @torch.no_grad()
    def step(self, lrm: float, progress: float) -> None:
        for matrices in self.muon:
            matrices.step(lrm, WEIGHT_DECAY * (1 - progress))
        for tensor in self.adam:
            tensor.step(lrm)

    def clear(self) -> None:
        for weight in self.weights:
            weight.grad = None


def lr_multiplier(progress: float) -> float:
    """Up over WARMUP_RATIO of the budget, 1, then down to FINAL_LR_FRAC over WARMDOWN_RATIO."""
    up = progress / WARMUP_RATIO if progress < WARMUP_RATIO else 1.0
    left = min(1.0, (1 - progress) / WARMDOWN_RATIO) if WARMDOWN_RATIO else 1.0
    return min(up, left + (1 - left) * FINAL_LR_FRAC)


# --------------------------------------------------------------------------------------------------
# Training


class Progress:
    """What has been trained, and the one line about it, rewritten about four times a second."""

    def __init__(self, model: GPT, device: str) -> None:
        self.params = sum(weight.numel() for weight in model.parameters())
        width, seq_len = model.embedding.embedding_dim, len(model.mask)
        reach = sum(seq_len // (2 if local else 1) for local in model.local)
        self.flops_per_token = 6 * (self.params - VOCAB_SIZE * width) + 12 * width * reach
        self.peak = peak_flops(device)
        self.steps = self.tokens = 0
        self.average, self.shown = 0.0, -math.inf

    def mfu_percent(self, tokens_per_second: float) -> float:
        return 100 * self.flops_per_token * tokens_per_second / self.peak if self.peak else 0.0

    def step(self, loss: float, tokens: int, seconds: float) -> None:
        self.average += 0.1 * (loss - self.average)
        self.steps += 1
        self.tokens += tokens
        self.seconds, self.speed = seconds, tokens / max(seconds, 1e-9)

    def show(self, lrm: float, epoch: int, budget: Budget) -> None:
        now = time.perf_counter()
        if now - self.shown < 0.25 and not budget.over:
            return
        self.shown = now
        print(
            f"\rstep {self.steps:05d} ({100 * budget.progress:.1f}%)"
            f" | loss: {self.average / (1 - 0.9**self.steps):.4f} | lrm: {lrm:.2f}"
            f" | dt: {1000 * self.seconds:.0f}ms | tok/sec: {self.speed:,.0f}"
            f" | mfu: {self.mfu_percent(self.speed):.1f}% | epoch: {epoch}"
            f" | remaining: {max(0.0, budget.seconds - budget.spent):.0f}s",
            end="",
            flush=True,
        )


def train(model: GPT, run: Model, shape: Shape, device: str) -> tuple[Progress, Budget]:
    """Steps until the budget is spent."""
    batches = Batches(load("train"), shape.pass_rows, shape.seq_len, SEED, device)
    optimizer, progress = Optimizer(model, shape.width), Progress(model, device)

    def backward(x: Tensor, y: Tensor) -> Tensor:
        logits = run(x).view(-1, VOCAB_SIZE)
        loss = functional.cross_entropy(logits, y.view(-1)) / shape.passes
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    # The first pass compiles and allocates. It trains nothing and is not on the clock.
    blank = torch.zeros(shape.pass_rows, shape.seq_len, dtype=torch.int64, device=device)
    backward(blank, blank)
    optimizer.clear()
    gc.freeze()
    gc.disable()  # a collection can cost as much as a step

    budget = Budget(device)
    while not budget.over:
        done = budget.progress
        lrm = lr_multiplier(done)
        losses = [backward(*next(batches)) for _ in range(shape.passes)]
        optimizer.step(lrm, done)
        optimizer.clear()
        loss = float(sum(losses))
        progress.step(loss, shape.passes * blank.numel(), budget.lap())
        progress.show(lrm, batches.epoch, budget)
        if not loss <= 100:  # NaN too
            print(f"\nFAIL: loss is {loss}", flush=True)
            sys.exit(1)
    print()
    return progress, budget


def peak_memory_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    device = set_up(SEED)
    sizes = (DEPTH, ASPECT_RATIO, HEAD_DIM, SEQ_LEN[device], TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE)
    shape = Shape(*sizes) if device == "cuda" else scaled_for_cpu(Shape(*sizes))
    model = GPT(shape).to(device)
    compiled = torch.compile(model, dynamic=False) if COMPILE and device == "cuda" else model

    def run(tokens: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            return cast(Tensor, compiled(tokens))

    progress, budget = train(model, run, shape, device)
    val_bpb = evaluate_bpb(run, device)
    print("---")
    print(f"val_bpb:          {val_bpb:.6f}")
    print(f"training_seconds: {budget.spent:.2f}")
    print(f"total_seconds:    {time.perf_counter() - STARTED:.2f}")
    print(f"peak_vram_mb:     {peak_memory_mb(device):.1f}")
    print(f"mfu_percent:      {progress.mfu_percent(progress.tokens / budget.spent):.2f}")
    print(f"total_tokens_M:   {progress.tokens / 1e6:.3f}")
    print(f"num_steps:        {progress.steps}")
    print(f"num_params_M:     {progress.params / 1e6:.3f}")
    print(f"depth:            {DEPTH}")


if __name__ == "__main__":
    main()
