"""The progress bar of a training."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from torch import Tensor

from ssl_toolkit.progress import Bar, progress_bar


class TrainingBar(pl.Callback):
    """One bar over all steps of the run, with images/s, time left and the loss.

    Args:
        batch_size: global.
        steps_per_epoch: for the epoch shown.
        title: in front of the bar.
    """

    def __init__(self, batch_size: int, steps_per_epoch: int, title: str, console: Console | None = None) -> None:
        self.batch_size, self.steps_per_epoch, self.title, self.console = batch_size, steps_per_epoch, title, console
        self._bar: Bar | None = None
        self._stack = ExitStack()
        self._last = 0.0

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
                )
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; the loss is read four times a second at most, since reading it waits for the device."""
        if self._bar is None:
            return
        note = None
        if time.monotonic() - self._last > 0.25:
            self._last = time.monotonic()
            loss: Tensor = outputs["loss"]
            epoch, epochs = (-(-steps // self.steps_per_epoch) for steps in (trainer.global_step, trainer.max_steps))
            note = f"epoch {epoch}/{epochs}, loss {float(loss):.3f}"
        self._bar.advance(self.batch_size, note)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the bar."""
        self._stack.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that an error is not drawn over."""
        self._stack.close()
