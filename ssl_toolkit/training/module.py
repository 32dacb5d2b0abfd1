"""The Lightning module that trains any method, knowing none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.methods.base import Method
from ssl_toolkit.training.optimizers import OPTIMIZERS, cosine_schedule, parameter_groups
from ssl_toolkit.views.batch import ViewBatch


class Pretraining(pl.LightningModule):
    """One optimization step of a method on normalised views.

    Args:
        method: any `Method`.
        mean, std: per channel, of the data set.
        optimizer: its config, ``name`` included.
        batch_size: global, for learning rates that scale with it.
        steps_per_epoch, total_steps: as this toolkit computes them, not Lightning's estimate.
    """

    def __init__(
        self,
        method: Method,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        optimizer: Mapping[str, Any],
        batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.method = method
        self.normalize = Normalize(mean, std)
        self.optimizer_config = dict(optimizer)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps

    def training_step(self, batch: ViewBatch, batch_index: int) -> dict[str, Any]:
        """The loss, with its terms, representations and statistics for callbacks."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            batch = batch.with_images(self.normalize)
        output = self.method(batch)
        return {"loss": output.loss, "terms": output.terms, "pooled": output.pooled, "statistics": output.statistics}

    def configure_optimizers(self) -> Any:
        """The optimizer, its rate following the schedule at every step."""
        options = OPTIMIZERS.options(self.optimizer_config)
        optimizer = OPTIMIZERS.entry(self.optimizer_config["name"]).factory(
            options, groups=parameter_groups(self.method, options.weight_decay), lr=options.peak(self.batch_size)
        )
        warmup = round(options.warmup_epochs * self.steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_schedule(step, warmup, self.total_steps, options.final_factor)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
