"""What stops a run that is not worth going on: losses that are not finite, and collapse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.processes.world import from_first
from ssl_toolkit.training.callbacks.failures import save_failure
from ssl_toolkit.training.callbacks.metrics import Measures
from ssl_toolkit.training.callbacks.options import Schedule

IN_A_ROW = 3
"""Failed steps that stop a run."""

SAVED = 3
"""Failed steps whose batches are saved, of the whole run."""

SPREAD = 0.05
"""Relative spread below which vectors have collapsed to a direction; 1 is evenly spread."""

RANK = 2.0
"""Effective rank below which representations have collapsed to a line."""

SHRUNK, NARROW = 0.05, 0.75
"""Embeddings have collapsed to a point where their standard deviation is below this share of what it was at first, and
their relative spread is below this too. The second lets criteria be that do not care for the scale of embeddings: a
SimCLR that trains has 0.9 and more, invariance alone left 0.15 to 0.65 (the noise of BatchNorm)."""


def _last_checkpoint(run: Path) -> str:
    path = run / "checkpoints" / "last.ckpt"
    return f"the last good checkpoint is {path}" if path.is_file() else "there is no checkpoint yet"


class Failures(pl.Callback):
    """Counts steps without a finite loss, which have changed nothing; saves their batches; stops at three in a row.

    Stands before `Measures` among the callbacks. Every process counts the same.

    Args:
        run: its folder.
        about: stored with a batch, see `save_failure`.
    """

    def __init__(self, run: Path, about: Mapping[str, Any], console: Console) -> None:
        self.run, self.about, self.console = run, about, console
        self.count = self.in_a_row = 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at how the step went."""
        reason = outputs["failure"]
        if reason is None:
            self.in_a_row = 0
            return
        self.count += 1
        self.in_a_row += 1
        step = trainer.global_step
        saved = self._save(step, reason, module.method, batch) if self.count <= SAVED else ""
        what = f"the loss is not finite at step {step}: {reason}"
        if self.in_a_row < IN_A_ROW:
            self._say(f"{what}; the step is left out{saved}")
            return
        batches = self.run / "failures"
        raise UserError(
            f"{what}; stopped after {IN_A_ROW} such steps in a row: lower optimizer.lr, raise optimizer.warmup_epochs, "
            f"or set trainer.clip_norm=1; {_last_checkpoint(self.run)}; the batches are in {batches} (see them with: "
            f"ssl-toolkit replay {batches}/step-{step:06d}.pt)"
        )

    def _save(self, step: int, reason: str, method: Any, batch: Any) -> str:
        """Save the batch; what to add to the line on the step."""
        try:
            path = save_failure(self.run, step, reason, method, batch, self.about)
        except UserError as error:
            return f"; its batch is not saved: {error}"
        return f", its batch is in {path}"

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def columns(self) -> dict[str, float]:
        """Failed steps of the run so far."""
        return {"failed_steps": self.count}

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.count, self.in_a_row = state_dict["count"], state_dict["in_a_row"]


def collapse(row: Mapping[str, float], first_std: float) -> str | None:
    """What of a row of ``metrics.csv`` shows a collapse; None where nothing does.

    Args:
        row: with the columns of `Measures`; those that are missing show nothing.
        first_std: of the embeddings, in the first row of the run.
    """
    for name, what in (("pooled", "representations"), ("embedded", "embeddings")):
        if row.get(f"{name}_spread", 1.0) < SPREAD:
            return f"the {what} of all images point the same way ({name}_spread {row[f'{name}_spread']:.2g})"
    if row.get("pooled_rank", RANK) < RANK:
        return f"the representations lie on one line (pooled_rank {row['pooled_rank']:.3g})"
    std, spread = row.get("embedded_std", first_std), row.get("embedded_spread", 1.0)
    if std < SHRUNK * first_std and spread < NARROW:
        return (
            f"the embeddings of all images are about the same (embedded_std {std:.2g}, {first_std:.2g} at first; "
            f"embedded_spread {spread:.2g})"
        )
    return None


class Collapse(pl.Callback):
    """Stops a run, or says once, that several rows in a row show a collapse, see `collapse`.

    Stands after `Measures` among the callbacks; all processes stop together.

    Args:
        run: its folder.
        warmup: steps in which nothing is said.
        patience: rows.
        stop: or only say it.
    """

    def __init__(
        self,
        run: Path,
        measures: Measures,
        schedule: Schedule,
        *,
        warmup: int,
        patience: int,
        stop: bool,
        console: Console,
    ) -> None:
        self.run, self.measures, self.schedule = run, measures, schedule
        self.warmup, self.patience, self.stop, self.console = warmup, patience, stop, console
        self.rows, self.first_std = 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the row, if there is one."""
        if not self.schedule.logged(trainer.global_step):
            return
        found = from_first(self._look)
        if found is None:
            return
        line = (
            f"the run has collapsed: {found} in {self.patience} rows of metrics.csv in a row, to step "
            f"{trainer.global_step}"
        )
        if not self.stop:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        raise UserError(
            f"{line}; check that the loss keeps embeddings apart (method.variance, method.terms, method.temperature), "
            f"lower optimizer.lr or raise optimizer.warmup_epochs; monitor.stop_on_collapse=false goes on all the "
            f"same; {_last_checkpoint(self.run)}"
        )

    def _look(self) -> str | None:
        """What has been seen for long enough, when it is to be said."""
        row = self.measures.row
        if row is None or "pooled_std" not in row:
            return None
        self.first_std = self.first_std or row.get("embedded_std", 0.0)
        found = collapse(row, self.first_std)
        if found is None or row["step"] <= self.warmup:
            self.rows = 0
            return None
        self.rows += 1
        return found if self.rows == self.patience else None

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of earlier rows."""
        return {"rows": self.rows, "first_std": self.first_std}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.rows, self.first_std = state_dict["rows"], state_dict["first_std"]
