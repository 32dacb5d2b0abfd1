"""The number that ``best.ckpt`` goes by."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ssl_toolkit.training.callbacks.options import Schedule
from ssl_toolkit.training.callbacks.validation import ValidationProbe

KEY = "monitor/best"
"""Entry of ``trainer.callback_metrics`` by which the best checkpoint is chosen."""

COLUMNS = {"knn": "knn_top1", "linear": "linear_top1"}


class BestValue(pl.Callback):
    """Puts ``monitor/best`` into ``trainer.callback_metrics`` after the steps that measure it; higher is better.

    It is there until the next step starts, on all ranks: an accuracy in percent, or the mean loss since the last one,
    negated, at the end of each epoch.

    Args:
        kind: ``knn``, ``linear`` or ``loss``.
        validation: where the accuracies come from.
    """

    def __init__(self, kind: str, schedule: Schedule, validation: ValidationProbe | None) -> None:
        self.kind, self.schedule, self.validation = kind, schedule, validation
        self._sum: Tensor | None = None
        self._count = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the number away: the weights it is of are about to change."""
        trainer.callback_metrics.pop(KEY, None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the number there if this step has one."""
        value = self._mean_loss(trainer.global_step, outputs) if self.kind == "loss" else self._accuracy()
        if value is not None:
            trainer.callback_metrics[KEY] = torch.tensor(value)

    def _accuracy(self) -> float | None:
        return None if self.validation is None else self.validation.found.get(COLUMNS[self.kind])

    def _mean_loss(self, step: int, outputs: Any) -> float | None:
        if outputs["failure"] is None:  # summed where it is: reading it would wait for the device
            loss = outputs["loss"].detach()
            self._sum = loss.clone() if self._sum is None else self._sum.to(loss.device) + loss
            self._count += 1
        if not self.schedule.ends_epoch(step) or self._sum is None:
            return None
        mean = float(self._sum) / self._count
        self._sum, self._count = None, 0
        return -mean

    def state_dict(self) -> dict[str, Any]:
        """The sum of losses so far."""
        return {"sum": None if self._sum is None else float(self._sum), "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self._sum = None if state_dict["sum"] is None else torch.tensor(state_dict["sum"])
        self._count = state_dict["count"]
