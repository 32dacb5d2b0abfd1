"""What is written and shown while a run trains. Callbacks read what a step returned and never touch the loop."""

from __future__ import annotations

import csv
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from torch import Tensor

from ssl_toolkit.criteria import std_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path
from ssl_toolkit.progress import Bar, progress_bar


class MetricsFile(pl.Callback):
    """Appends a row to ``metrics.csv`` every ``every`` steps: loss, terms, learning rate, throughput, feature spread,
    and the statistics the method has of that step's batch, which are computed for it.

    A resumed run cuts the rows after the step it starts from, so that a curve never doubles back. A loss that is not
    finite stops the run.

    Args:
        path: of the file.
        every: steps between rows; the last step is always written.
        batch_size: global.
        steps_per_epoch: for the column ``epoch``.
    """

    def __init__(self, path: Path, every: int, batch_size: int, steps_per_epoch: int) -> None:
        self.path, self.every, self.batch_size = path, every, batch_size
        self.steps_per_epoch = steps_per_epoch
        self._columns: list[str] = []
        self._since = (0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take up the file of the run that is resumed."""
        self._since = (trainer.global_step, time.monotonic())
        if not trainer.is_global_zero or not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        kept = [row for row in rows[1:] if row[0].isdigit() and int(row[0]) <= trainer.global_step]
        self._columns = rows[0] if rows and kept else []
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(([self._columns, *kept]) if self._columns else [])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a row if it is time."""
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}: lower optimizer.lr or raise its warmup_epochs; "
                f"checkpoints so far are in {self.path.parent / 'checkpoints'}"
            )
        if not trainer.is_global_zero:
            return
        since, then = self._since
        now = time.monotonic()
        self._since = (step, now)
        row = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 3),
            "loss": loss,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": (step - since) * self.batch_size / max(now - then, 1e-9),
            "pooled_std": float(std_of(outputs["pooled"].float())),
        }
        for named in (outputs["terms"], outputs["statistics"]()):
            row |= {name: float(value) for name, value in named.items()}
        self._append({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()})

    def _append(self, row: dict[str, str]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not self._columns:
                self._columns = list(row)
                writer.writerow(self._columns)
            writer.writerow([row.get(column, "") for column in self._columns])


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


class UnreadableFile:
    """Names each image that could not be read, on the console and in a file of the run.

    Args:
        path: of the file, made with the first line; a resumed run adds to it what is new.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path, self.console = path, console
        self._known = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()

    def __call__(self, message: str) -> None:
        """Take up one line; of a name that is not UTF-8 what can be written."""
        message = message.encode("utf-8", "backslashreplace").decode()
        self.console.print(f"skipped: {message}", highlight=False, markup=False, soft_wrap=True)
        if message not in self._known:
            self._known.add(message)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(message + "\n")
