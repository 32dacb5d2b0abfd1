"""When checkpoints are written, and how a signal ends a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from torch.optim import Optimizer

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import link_or_copy
from ssl_toolkit.processes.world import from_first, in_any_process
from ssl_toolkit.training.callbacks.best import KEY as BEST_VALUE
from ssl_toolkit.training.checkpoints import BEST, FORMAT, LAST, OURS, NotFinite, checkpoint_path, progress
from ssl_toolkit.training.module import Pretraining

STOPPING = b"\nstopping after this step, with a checkpoint; Ctrl+C again stops at once without one\n"


class Stopped(Exception):
    """Ends training between two steps because a signal asked for it; the checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Checkpoints(Checkpoint):
    """Keeps ``checkpoints/`` of a run: ``last``, ``best`` and, for good, one every ``keep_every`` epochs.

    Lightning's own `ModelCheckpoint` does not serve: it writes in the middle of what Lightning counts, stops the run
    where a disk is full, and stores weights that are not finite over good ones.

    A checkpoint is only ever of the state between two steps, after every other callback has seen the last of them. A
    step that an error interrupts is undone, unless the optimizer had begun: then the last checkpoint stays.

    ``last`` is written first; the others are other names of the same file. Process 0 writes; no process waits for it.

    Args:
        run: the run's folder.
        every: steps between checkpoints; None at the end of every epoch.
        keep_every: epochs between those that are kept; None keeps none.
        steps_per_epoch: of this run.
        about: what is stored of the run, plain values.
        first: whether this is process 0.
        console: is told of checkpoints that cannot be written.
    """

    def __init__(
        self,
        run: Path,
        *,
        every: int | None,
        keep_every: int | None,
        steps_per_epoch: int,
        about: Mapping[str, Any],
        first: bool,
        console: Console,
    ) -> None:
        self.run, self.every, self.keep_every, self.steps_per_epoch = run, every, keep_every, steps_per_epoch
        self.about, self.first, self.console = about, first, console
        self.saved: int | None = None
        self.problem: UserError | None = None
        self.asked: int | None = None
        self._best: float | None = None
        self._seen: Any = None
        self._at: Literal["outside", "between", "step", "update"] = "outside"

    def how_to_continue(self, step: int) -> str:
        """One line for a run that was stopped at ``step``."""
        kept = "it has no checkpoint yet" if self.saved is None else f"its last checkpoint is of step {self.saved}"
        stopped = f"stopped at step {step}" + ("" if self.saved == step else f", {kept}")
        return f"{stopped}; continue with: ssl-toolkit pretrain run={self.run}"

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best value."""
        self._best = state_dict["best"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell Lightning's loop where training stands."""
        self.saved = checkpoint["global_step"]
        state = progress(trainer.fit_loop.state_dict(), self.saved, self.steps_per_epoch)
        checkpoint["loops"] = {"fit_loop": state}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over SIGINT and SIGTERM from Lightning, which puts back at the end what it found."""
        self._at = "between"
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.first:
            os.write(2, STOPPING)
        self.asked = self.asked or number

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """From here on the state is not that of a whole number of steps."""
        self._at = "step"

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """From here on the step cannot be undone."""
        self._at = "update"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Write a checkpoint if it is time; the last step of an epoch waits for what the epoch's end has to say."""
        step = trainer.global_step
        if step % self.steps_per_epoch and step != trainer.max_steps:
            self._settle(trainer, self.every is not None and step % self.every == 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint if it is time, at the end of the run always."""
        step = trainer.global_step
        epoch, rest = divmod(step, self.steps_per_epoch)
        due = step == trainer.max_steps or (rest if self.every is None else step % self.every) == 0
        kept = self.keep_every is not None and rest == 0 and epoch % self.keep_every == 0
        self._settle(trainer, due, *([f"epoch-{epoch:04d}"] if kept else []))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last checkpoint must have been written."""
        self._at = "outside"
        wrong = from_first(self._wrong)
        if wrong is not None:
            raise UserError(wrong)

    def _wrong(self) -> str | None:
        """What is wrong at the end, and what to do about it."""
        if isinstance(self.problem, NotFinite):
            good = "there is no good checkpoint" if self.saved is None else f"the last good one is of step {self.saved}"
            return f"the run has diverged: {self.problem}, {good}; start anew with a lower optimizer.lr"
        if self.problem is not None:
            return (
                f"training is done, but its last checkpoint could not be written: {self.problem}; make room, then "
                f"finish from step {self.saved or 0} with: ssl-toolkit pretrain run={self.run}"
            )
        return None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what was trained, where the state is whole or can be made so."""
        at, self._at = self._at, "outside"
        if not self.first or isinstance(exception, (Stopped, KeyboardInterrupt)):
            return
        if at == "step" and isinstance(pl_module, Pretraining):
            pl_module.undo_step()
        elif at != "between":
            return
        if self.saved != trainer.global_step and self._save(trainer):
            self._say(f"checkpoint of step {self.saved} written; continue with: ssl-toolkit pretrain run={self.run}")

    def _settle(self, trainer: pl.Trainer, due: bool, *names: str) -> None:
        """Between two steps: write what is due, under ``names`` too, and stop where a signal asked for it."""
        self._at = "between"
        stopping = in_any_process(self.asked is not None, trainer.strategy.root_device)
        if self.first:
            best = [BEST] if self._improved(trainer) else []
            if due or names or best or (stopping and self.saved != trainer.global_step):
                self._save(trainer, *best, *names)
        if stopping:
            self.saved = from_first(lambda: self.saved)  # none leaves before it is written
            raise Stopped(self.asked or signal.SIGTERM)

    def _improved(self, trainer: pl.Trainer) -> bool:
        """Whether a monitor has a new value, better than all before."""
        value = trainer.callback_metrics.get(BEST_VALUE)
        if value is None or value is self._seen:
            return False
        self._seen = value
        better = self._best is None or float(value) > self._best
        if better:
            self._best = float(value)
        return better

    def _save(self, trainer: pl.Trainer, *names: str) -> bool:
        """Write ``last`` and its other names; a failure is told and remembered."""
        last = checkpoint_path(self.run, LAST)
        try:
            trainer.strategy.save_checkpoint(self._contents(trainer, names), last)
            self.saved, self.problem = trainer.global_step, None
            give_names(self.run, names)
        except Exception as error:  # whatever it is, the state in memory is worth more than a checkpoint of it
            self.problem = error if isinstance(error, UserError) else UserError(f"cannot write {last}: {error!r}")
            self._say(f"checkpoint of step {trainer.global_step} failed: {self.problem}")
        return self.problem is None

    def _contents(self, trainer: pl.Trainer, names: tuple[str, ...]) -> dict[str, Any]:
        """What Lightning restores, and what we check and export; `progress` says what of the loop."""
        strategy = trainer.strategy
        contents = {
            "pytorch-lightning_version": metadata.version("lightning"),
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "state_dict": strategy.lightning_module_state_dict(),
            "optimizer_states": [strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "callbacks": {c.state_key: state for c in trainer.callbacks if (state := c.state_dict())},  # type: ignore[attr-defined]
            OURS: {"format": FORMAT, "names": list(names), **self.about},
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_save_checkpoint(trainer, trainer.lightning_module, contents)
        return contents

    def _say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def give_names(run: Path, names: tuple[str, ...] | list[str]) -> None:
    """Have ``last`` also be ``names``.

    Raises:
        UserError: the folder cannot be written.
    """
    for name in names:
        link_or_copy(checkpoint_path(run, LAST), checkpoint_path(run, name))
