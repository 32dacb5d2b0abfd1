"""The rows of ``metrics.csv``, sent to TensorBoard and Weights & Biases too."""

from __future__ import annotations

import importlib.util
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import PIL.Image

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import write_text
from ssl_toolkit.training.callbacks.metrics import Measures
from ssl_toolkit.training.callbacks.options import WandbConfig

PICTURES = ("views",)
"""Names in ``examples/`` of what is sent once."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger whose package is missing.

    Raises:
        UserError: saying what to install.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"monitor.loggers: {name} is not installed: pip install {name} (or pip install 'ssl-toolkit[{name}]')"
            )


class RowLogger(pl.Callback):
    """Hands each row to a logger, on rank 0, and the pictures of the run when it starts.

    Args:
        run: its folder.
        measures: makes the rows; stands before this among the callbacks.
    """

    def __init__(self, run: Path, measures: Measures) -> None:
        self.run, self.measures = run, measures

    @abstractmethod
    def open(self, step: int) -> None:
        """Start, or go on after ``step``."""

    @abstractmethod
    def picture(self, name: str, path: Path) -> None:
        """Show a PNG."""

    @abstractmethod
    def write(self, row: Mapping[str, float]) -> None:
        """Take a row."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the logger where training stands."""
        if not trainer.is_global_zero:
            return
        self.open(trainer.global_step)
        for name in PICTURES if trainer.global_step == 0 else ():
            path = self.run / "examples" / f"{name}.png"
            if path.is_file():
                self.picture(name, path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send the row, if there is one."""
        if self.measures.row is not None:
            self.write(self.measures.row)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the logger."""
        if trainer.is_global_zero:
            self.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Close the logger: what was sent before an error matters most."""
        if trainer.is_global_zero:
            self.close()


class TensorBoardRows(RowLogger):
    """Event files in ``tensorboard/`` of the run: ``tensorboard --logdir runs``."""

    _writer: Any = None

    def open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1 if step else None)

    def picture(self, name: str, path: Path) -> None:
        self._writer.add_image(name, np.asarray(PIL.Image.open(path).convert("RGB")), 0, dataformats="HWC")

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class WandbRows(RowLogger):
    """A run of Weights & Biases, the same one when the run is resumed.

    Args:
        options: project, entity and mode.
        config: of the run, as plain containers.
    """

    def __init__(self, run: Path, measures: Measures, options: WandbConfig, config: Mapping[str, Any]) -> None:
        super().__init__(run, measures)
        self.options, self.config = options, config
        self._run: Any = None

    def open(self, step: int) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=self.options.project,
                entity=self.options.entity,
                mode=self.options.mode,  # type: ignore[arg-type]
                name=self.run.name,
                id=self._id(),
                resume="allow",
                dir=str(self.run),
                config=dict(self.config),
                settings=wandb.Settings(silent=True),
            )
        except Exception as error:  # no key, no network, no such entity
            reason = (str(error) or type(error).__name__).splitlines()[0]
            hint = "run 'wandb login', or take monitor.wandb.mode=offline"
            raise UserError(f"monitor.loggers: wandb does not start ({reason}): {hint}") from error
        # By our own count: wandb's never goes back, a resumed run may.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _id(self) -> str:
        path = self.run / "wandb" / "id.txt"
        if not path.is_file():
            write_text(path, uuid.uuid4().hex[:12] + "\n")
        return path.read_text(encoding="utf-8").strip()

    def picture(self, name: str, path: Path) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def write(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = None
