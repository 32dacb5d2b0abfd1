"""How learning rate and weight decay change over a run."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` at ``progress`` 0 to ``end`` at 1 and beyond."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def rate_factor(step: int, warmup_steps: int, total_steps: int, final_factor: float) -> float:
    """Factor on the peak rate at ``step``: linear over the warm-up, then half a cosine to ``final_factor``.

    The first step has 1 / (warmup_steps + 1) of the peak, not 0 as in the published code, where it changes nothing.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return cosine((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0, final_factor)


class CosineSchedule(LRScheduler):
    """Sets the learning rate of every group, and the weight decay of those that decay, at every step.

    The rate of a group is its own peak times `rate_factor`; weight decay follows half a cosine over the whole run,
    without a warm-up (DINO, Caron et al. 2021). All of it is a function of the step, and that is in the state.

    Args:
        optimizer: its groups as `parameter_groups` makes them.
        weight_decay, weight_decay_end: at the start and at the end.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        total_steps: int,
        final_factor: float,
        weight_decay: float,
        weight_decay_end: float,
    ) -> None:
        self.warmup_steps, self.total_steps, self.final_factor = warmup_steps, total_steps, final_factor
        self.weight_decay, self.weight_decay_end = weight_decay, weight_decay_end
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Learning rates of this step, one for each group."""
        factor = rate_factor(self.last_epoch, self.warmup_steps, self.total_steps, self.final_factor)
        return [peak * factor for peak in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step."""
        super().step(epoch)
        decay = cosine(self.last_epoch / self.total_steps, self.weight_decay, self.weight_decay_end)
        for group in self.optimizer.param_groups:
            if group["decays"]:
                group["weight_decay"] = decay
