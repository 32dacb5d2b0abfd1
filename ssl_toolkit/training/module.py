"""The Lightning module that trains any method, knowing none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.criteria import NonFiniteError
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.methods.base import Method
from ssl_toolkit.training.accumulation import Buffers, accumulated
from ssl_toolkit.training.optimizers import OPTIMIZERS, cosine_schedule, parameter_groups
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

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep a failed step from changing anything: optimizers leave weights without a gradient alone."""
        if self._failed:
            self.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: `training_step` has done it, and may have left gradients of parts of the batch since."""

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
