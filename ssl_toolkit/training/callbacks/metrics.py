"""The numbers of a step, and ``metrics.csv``."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ssl_toolkit.criteria import std_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, disk_full
from ssl_toolkit.training.callbacks.measures import effective_rank, mean_correlation, relative_spread
from ssl_toolkit.training.callbacks.options import Schedule
from ssl_toolkit.views import ViewLoader

TIMINGS = ("images_per_second", "waiting_share", "peak_memory_gib")
"""Columns that differ from run to run; all others of a resumed run are those of an uninterrupted one."""


class Measures(pl.Callback):
    """Makes the row of each step that gets one. Nothing is computed, copied or waited for on other steps.

    Batch statistics are those of rank 0's own images; nothing here is collective.

    Args:
        schedule: which steps get a row.
        batch_size: global.
        sources: further columns, asked for when a row is made, on rank 0.
        paused: seconds that others have spent between steps so far, left out of the throughput.

    Attributes:
        row: of the step that has just ended; None where it has none, and on other ranks.
    """

    def __init__(
        self,
        schedule: Schedule,
        batch_size: int,
        sources: Sequence[Callable[[], Mapping[str, float]]] = (),
        paused: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.schedule, self.batch_size, self.sources, self.paused = schedule, batch_size, sources, paused
        self.row: dict[str, float] | None = None
        self._update: dict[str, Tensor | float] = {}
        self._step, self._clock, self._waited = 0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self._step, self._clock, self._waited = trainer.global_step, time.monotonic() - self.paused(), _waited(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The gradient before it is clipped, and the rates that this step goes by."""
        self._update = {}
        if not self.schedule.logged(trainer.global_step + 1) or not trainer.is_global_zero:
            return
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        self._update = {
            "lr": max(group["lr"] for group in groups),
            "weight_decay": max(group["weight_decay"] for group in groups),
            "gradient_norm": torch.nn.utils.get_total_norm(gradients),
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the row if it is time."""
        self.row = None
        step = trainer.global_step
        if not self.schedule.logged(step) or not trainer.is_global_zero:
            return
        row: dict[str, Any] = {"step": step, "epoch": round(step / self.schedule.steps_per_epoch, 3)}
        if outputs["failure"] is None:
            row |= {"loss": outputs["loss"], **self._update, **_batch_statistics(outputs)}
        else:
            row |= {key: value for key, value in self._update.items() if key != "gradient_norm"}
        for source in self.sources:
            row |= source()
        row |= self._timings(trainer, module.device)
        self.row = {key: value if isinstance(value, int) else float(value) for key, value in row.items()}

    def _timings(self, trainer: pl.Trainer, device: torch.device) -> dict[str, float]:
        step, now, waited = trainer.global_step, time.monotonic() - self.paused(), _waited(trainer)
        seconds = max(now - self._clock, 1e-9)
        found = {
            "images_per_second": (step - self._step) * self.batch_size / seconds,
            "waiting_share": min(1.0, (waited - self._waited) / seconds),
        }
        if device.type == "cuda":
            found["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        self._step, self._clock, self._waited = step, now, waited
        return found


def _waited(trainer: pl.Trainer) -> float:
    """Seconds spent waiting for batches so far."""
    loader = trainer.train_dataloader
    return loader.waited if isinstance(loader, ViewLoader) else 0.0


def _batch_statistics(outputs: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in ("pooled", "embedded"):
        if outputs[name] is None:
            continue
        x = outputs[name].float()
        found[f"{name}_std"] = std_of(x)
        found[f"{name}_spread"] = relative_spread(x)
        found[f"{name}_rank"] = effective_rank(x)
        found[f"{name}_correlation"] = mean_correlation(x)
    return found | outputs["terms"] | outputs["statistics"]()


class MetricsFile(pl.Callback):
    """Writes each row to ``metrics.csv``.

    A resumed run cuts the rows after the step it starts from, so that a curve never doubles back, and keeps the file's
    columns. A column that turns up later is added at the end. Rows for which the disk has no room wait until it has.

    Args:
        path: of the file.
        measures: makes the rows; stands before this among the callbacks.
    """

    def __init__(self, path: Path, measures: Measures) -> None:
        self.path, self.measures = path, measures
        self._columns: list[str] = []
        self._waiting: list[dict[str, str]] = []

    def state_dict(self) -> dict[str, Any]:
        """Rows that are not in the file."""
        return {"waiting": [dict(row) for row in self._waiting]} if self._waiting else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._waiting = state_dict["waiting"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take up the file of the run that is resumed."""
        if not trainer.is_global_zero or not self.path.exists():
            return
        rows = self._read()
        kept = [row for row in rows[1:] if row[0].isdigit() and int(row[0]) <= trainer.global_step]
        written = {row[0] for row in kept}
        self._waiting = [row for row in self._waiting if row["step"] not in written]
        self._columns = rows[0] if rows and kept else []
        self._replace([self._columns, *kept] if self._columns else [])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row, if there is one."""
        if self.measures.row is not None:
            self._append({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in self.measures.row.items()})

    def _append(self, row: Mapping[str, str]) -> None:
        self._waiting.append(dict(row))
        try:
            self._add_columns()
            size = self.path.stat().st_size
            try:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    rows = [[waiting.get(column, "") for column in self._columns] for waiting in self._waiting]
                    csv.writer(file).writerows(rows)
            except OSError:
                os.truncate(self.path, size)  # no half of a row
                raise
            self._waiting = []
        except (OSError, UserError) as error:
            if not disk_full(error):
                raise UserError(f"cannot write {self.path}: {getattr(error, 'strerror', error)}") from error

    def _add_columns(self) -> None:
        """Give the file the columns that waiting rows have and it has not."""
        columns = list(dict.fromkeys([*self._columns, *(name for row in self._waiting for name in row)]))
        if columns != self._columns:
            rows = self._read()[1:] if self._columns else []
            filled = [[*old, *[""] * (len(columns) - len(old))] for old in rows]
            self._replace([columns, *filled])
            self._columns = columns

    def _read(self) -> list[list[str]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.reader(file) if row]

    def _replace(self, rows: Sequence[Sequence[str]]) -> None:
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
