"""``metrics.csv``."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ssl_toolkit.criteria import std_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path


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
