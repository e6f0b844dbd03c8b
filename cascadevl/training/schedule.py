"""Learning rate by step: a factor in 0…1 on each group's own rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from cascadevl.core.errors import ConfigError
from cascadevl.training.config import ScheduleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStableDecay:
    """Linear warm-up, constant, then a cosine to `floor` over the last `decay` steps."""

    steps: int
    warmup: int
    decay: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup + self.decay > self.steps:
            raise ConfigError(f"{self.warmup} warm-up and {self.decay} decay steps exceed {self.steps} steps.")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        into_decay = step - (self.steps - self.decay)
        if into_decay < 0:
            return 1.0
        progress = min(1.0, (into_decay + 1) / max(self.decay, 1))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_schedule(config: ScheduleConfig, steps: int) -> Callable[[int], float]:
    """What the config says, over so many steps."""
    return WarmupStableDecay(steps=steps, warmup=config.warmup(steps), decay=config.decay(steps), floor=config.floor)
