"""How far a run is: its budget of steps, tokens or time, the learning rate over it, and what is told of its progress.

Tests: tests/train/test_pretrain.py, tests/train/test_distributed.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from m2bert.train.settings import TrainConfig


@dataclass(frozen=True)
class Progress:
    """State of a running training, handed to `on_progress`."""

    stage: str
    step: int = 0
    fraction: float = 0.0
    tokens: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    seconds_left: float = math.nan
    loss: float = math.nan


OnProgress = Callable[[Progress], None]


def in_group() -> bool:
    """Whether this process has met others to train with."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def process_group() -> tuple[int, int]:
    """(rank, number of processes) of this training; before they have met, as torchrun tells them."""
    if not in_group():
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def is_main_process() -> bool:
    """Whether this process writes the log and the model: the only one, or the first of a group."""
    return process_group()[0] == 0


class Budget:
    """How much of the run is done, by steps, tokens or time, whichever is furthest; survives restarts."""

    def __init__(self, config: TrainConfig) -> None:
        self.max_steps, self.max_tokens, self.max_seconds = config.max_steps, config.max_tokens, config.max_seconds
        self.before = 0.0
        self.tokens = 0
        self.tokens_before = 0
        self.device = torch.device("cpu")
        self._uncounted = 0
        self.elapsed = 0.0
        self._start = time.monotonic()

    def start(self, seconds_before: float, tokens_before: int) -> None:
        """Start the clock, on top of what earlier runs used."""
        self.before, self.tokens, self.tokens_before = seconds_before, tokens_before, tokens_before
        self.elapsed = seconds_before
        self._start = time.monotonic()

    def count(self, tokens: int) -> None:
        """Note real tokens of this process; they are in `tokens` after the next :meth:`tick`."""
        self._uncounted += tokens

    def tick(self) -> None:
        """Once per step on every process: take the first one's time and the tokens of all.

        Every process must see the same share of the budget, or their learning rates and their ends would differ.
        """
        now = torch.tensor([self.seconds, self._uncounted], dtype=torch.float64, device=self.device)
        if in_group():
            now[0] *= float(is_main_process())
            torch.distributed.all_reduce(now)
        self.elapsed, self._uncounted = float(now[0]), 0
        self.tokens += int(now[1])

    @property
    def seconds(self) -> float:
        """Training time of this run and the runs it resumes."""
        return self.before + time.monotonic() - self._start

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second since this process started training."""
        return (self.tokens - self.tokens_before) / max(time.monotonic() - self._start, 1e-9)

    def used(self, step: int) -> dict[str, float]:
        """step, tokens, seconds and tokens_per_second, as runs return them."""
        return {
            "step": step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }

    def fraction(self, step: int) -> float:
        """Share of the budget used up after `step` steps, 0..1."""
        by_steps = step / self.max_steps if self.max_steps > 0 else 0.0
        by_tokens = self.tokens / self.max_tokens if self.max_tokens > 0 else 0.0
        by_time = self.elapsed / self.max_seconds if self.max_seconds > 0 else 0.0
        return min(max(by_steps, by_tokens, by_time), 1.0)


def schedule_factor(config: TrainConfig, fraction: float) -> float:
    """Learning rate as a share of the peak at `fraction` (0..1) of the budget: linear warmup, then decay."""
    if fraction < config.warmup_ratio:
        return fraction / config.warmup_ratio
    if config.lr_scheduler_type == "constant":
        return 1.0
    rest = min((fraction - config.warmup_ratio) / max(1.0 - config.warmup_ratio, 1e-9), 1.0)
    decayed = 1.0 - rest if config.lr_scheduler_type == "linear" else 0.5 * (1.0 + math.cos(math.pi * rest))
    floor = config.final_learning_rate / config.learning_rate
    return floor + (1.0 - floor) * decayed
