"""The progress of a training."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from ssl_toolkit.progress import Bar, progress_bar
from ssl_toolkit.training.callbacks.validation import ValidationProbe


class TrainingBar(pl.Callback):
    """On a terminal one bar over all steps of the run, elsewhere a line for each epoch: epoch, loss, images/s, time
    left, and accuracy of the probes.

    Args:
        batch_size: global.
        steps_per_epoch: for the epoch shown.
        title: in front.
        validation: where the accuracies come from; stands before this among the callbacks.
    """

    def __init__(
        self,
        batch_size: int,
        steps_per_epoch: int,
        title: str,
        console: Console | None = None,
        validation: ValidationProbe | None = None,
    ) -> None:
        self.batch_size, self.steps_per_epoch, self.title, self.console = batch_size, steps_per_epoch, title, console
        self.validation = validation
        self._bar: Bar | None = None
        self._stack = ExitStack()
        self._last = 0.0
        self._accuracy = ""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar where training stands."""
        if trainer.is_global_zero:
            size = self.batch_size
            self._bar = self._stack.enter_context(
                progress_bar(
                    self.title,
                    trainer.max_steps * size,
                    done=trainer.global_step * size,
                    console=self.console,
                    log_every=math.inf,
                )
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar. The loss is read four times a second at most, since reading it waits for the device."""
        if self._bar is None:
            return
        found = {} if self.validation is None else self.validation.found
        if found:
            self._accuracy = "".join(f", {name.split('_')[0]} {value:.1f}%" for name, value in found.items())
        step = trainer.global_step
        ends = step % self.steps_per_epoch == 0 or step == trainer.max_steps
        due = time.monotonic() - self._last > 0.25 if self._bar.live else ends
        note = self._note(step, trainer.max_steps, outputs) if due else None
        self._bar.advance(self.batch_size, note)
        if ends and not self._bar.live:
            self._bar.log(f"{self.title}: {self._bar.status()}")

    def _note(self, step: int, last: int, outputs: Any) -> str:
        self._last = time.monotonic()
        epoch, epochs = (-(-steps // self.steps_per_epoch) for steps in (step, last))
        loss = "not finite" if outputs["failure"] is not None else f"{float(outputs['loss']):.3f}"
        return f"epoch {epoch}/{epochs}, loss {loss}{self._accuracy}"

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the bar."""
        self._stack.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that an error is not drawn over."""
        self._stack.close()
