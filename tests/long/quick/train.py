"""Trains nothing: prints what a run prints, and a value that its knobs determine."""

import math
import os
import time

LR = 0.1  # optimizer: 0.001..1.0 log
WIDTH = 8  # architecture: 2..64 log pow2
DEPTH = 4  # architecture: 1..16
DECAY = 0.5  # regularization: 0.0..1.0

budget = float(os.environ["TRAIN_SECONDS"])
started = time.monotonic()
step = 0
while (spent := time.monotonic() - started) < budget:
    step += 1
    time.sleep(0.05)
    print(
        f"\rstep {step:05d} ({100 * spent / budget:.1f}%) | loss: {3 - step / 100:.2f}"
        f" | tok/sec: 1,000 | mfu: 0.0% | remaining: 1s",
        end="",
        flush=True,
    )
away = abs(math.log10(LR) + 2) + abs(math.log2(WIDTH) - 4) + abs(DEPTH - 9) / 4 + abs(DECAY - 0.2)
print(f"\n---\nval_bpb: {1 + 0.1 * away:.6f}\nnum_steps: {step}\npeak_vram_mb: 12.5")
