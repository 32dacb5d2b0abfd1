"""The Lightning module that trains any method, knowing none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.backbones.groups import parameter_groups
from ssl_toolkit.criteria import NonFiniteError
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.methods.base import Method
from ssl_toolkit.training.accumulation import Buffers, accumulated
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.training.schedules import CosineSchedule
from ssl_toolkit.views.batch import ViewBatch


class StepOutput(TypedDict):
    """What a step hands to callbacks.

    Attributes:
        loss: with a graph; NaN where the step failed.
        terms: detached, weighted parts of it; empty where the step failed.
        pooled, embedded: see `ssl_toolkit.methods.MethodOutput`; None where the step failed.
        statistics: computes other numbers worth logging.
        failure: why the loss is not finite; None where it is. The step then changes neither weights nor statistics.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    pooled: Tensor | None
    embedded: Tensor | None
    statistics: Callable[[], dict[str, Tensor]]
    failure: str | None


class Pretraining(pl.LightningModule):
    """One optimization step of a method on normalised views.

    Args:
        method: any `Method`.
        mean, std: per channel, of the data set.
        optimizer: its config, ``name`` included.
        batch_size: global, for learning rates that scale with it.
        steps_per_epoch, total_steps: as this toolkit computes them, not Lightning's estimate.
        accumulate: parts in which the images pass through the network, see `accumulated`.
        seed, rank: with the step they say what is random in the network (stochastic depth), so that nothing of it has
            to be stored for a run to resume exactly.
        position: tells the number of steps already trained.
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
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__()
        self.method = method
        self.normalize = Normalize(mean, std)
        self.optimizer_config = dict(optimizer)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.accumulate = accumulate
        self.seed, self.rank, self.position = seed, rank, position
        self._saved: Buffers | None = None
        self._open = False
        self._failed = False

    def _seed(self, part: int) -> None:
        key = (self.seed, self.position(), self.rank, part)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: ViewBatch, batch_index: int) -> StepOutput:
        """The loss, with its terms, representations and statistics for callbacks.

        Embeddings that give no finite loss, on any process, make this a step that changes nothing.
        """
        self.zero_grad(set_to_none=True)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            batch = batch.with_images(self.normalize)
        if self._saved is None:
            self._saved = Buffers(self.method)
        self._saved.save()
        self._open = True
        self.method.progress = self.position() / self.total_steps
        try:
            if self.accumulate > 1:
                output = accumulated(self.method, batch, self.accumulate, self._saved, self._seed)
            else:
                self._seed(0)
                output = self.method(batch)
        except NonFiniteError as error:
            self._saved.restore()
            self._failed = True
            return StepOutput(
                loss=self._no_loss(), terms={}, pooled=None, embedded=None, statistics=dict, failure=str(error)
            )
        self._failed = False
        return StepOutput(
            loss=output.loss,
            terms=output.terms,
            pooled=output.pooled,
            embedded=output.embedded,
            statistics=output.statistics,
            failure=None,
        )

    def _no_loss(self) -> Tensor:
        """NaN, with a gradient of 0 for every weight: DDP waits for one."""
        return torch.stack([p.sum() * 0 for p in self.parameters() if p.requires_grad]).sum() + float("nan")

    def undo_step(self) -> None:
        """Put back what an unfinished step did to norm statistics; before the optimizer's turn nothing else changes."""
        if self._open and self._saved is not None:
            self._saved.restore()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep a failed step from changing anything: optimizers leave weights without a gradient alone."""
        self._open = False
        if self._failed:
            self.zero_grad(set_to_none=True)

    def transfer_batch_to_device(self, batch: ViewBatch, device: torch.device, dataloader_idx: int) -> ViewBatch:
        """From page-locked memory without waiting; the views are uint8 still."""
        return batch.to(device, non_blocking=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale gradients down to a norm; Lightning's own way refuses fused optimizers, fearing for a GradScaler that
        bf16 does not need."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: `training_step` has done it, and may have left gradients of parts of the batch since."""

    def configure_optimizers(self) -> Any:
        """The optimizer, its rate and weight decay following the schedule at every step."""
        options = OPTIMIZERS.options(self.optimizer_config)
        groups = parameter_groups(self.method, options.weight_decay, options.peak(self.batch_size), options.layer_decay)
        optimizer = OPTIMIZERS.entry(self.optimizer_config["name"]).factory(options, groups=groups)
        schedule = CosineSchedule(
            optimizer,
            warmup_steps=round(options.warmup_epochs * self.steps_per_epoch),
            total_steps=self.total_steps,
            final_factor=options.final_factor,
            weight_decay=options.weight_decay,
            weight_decay_end=options.final_weight_decay(),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
