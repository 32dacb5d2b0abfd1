"""Checkpoint files: when they are written, that they are whole, and what happens when they cannot be."""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_toolkit.errors import UserError
from ssl_toolkit.training import checkpoints
from ssl_toolkit.training.callbacks.best import KEY
from ssl_toolkit.training.checkpoints import (
    CheckpointFiles,
    checkpoint_names,
    checkpoint_path,
    not_finite,
    read_checkpoint,
)
from ssl_toolkit.training.saving import Checkpoints, Stopped
from tests.training.killing import difference

EPOCH, STEPS = 4, 14  # the last epoch is cut short


class Toy(pl.LightningModule):
    """A linear layer behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.net(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Batches:
    """Of step ``position() + 1`` on, to the end of the epoch."""

    def __init__(self, position: Callable[[], int]) -> None:
        self.position = position

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self) -> Iterator[Tensor]:
        start = self.position()
        for step in range(start, start - start % EPOCH + EPOCH):
            yield torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


class Hooks(pl.Callback):
    """Writes down what Lightning calls, with what it counts; ``act`` may do something there."""

    def __init__(self, act: Callable[[pl.Trainer, str], None] = lambda trainer, hook: None) -> None:
        self.act = act
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, trainer: pl.Trainer, hook: str, *more: Any) -> None:
        self.calls.append((hook, trainer.global_step, trainer.current_epoch, *more))
        self.act(trainer, hook)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note(trainer, "epoch start")

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        self._note(trainer, "batch start", index, float(batch.sum()), trainer.is_last_batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._note(trainer, "batch end", index, float(outputs["loss"]), trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note(trainer, "epoch end")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note(trainer, "end")


def fit(
    run: Path,
    act: Callable[[pl.Trainer, str], None] = lambda trainer, hook: None,
    resume: str | None = None,
    **options: Any,
) -> tuple[Hooks, Checkpoints, str]:
    """Train a `Toy`; gives what was called, the callback, and what it printed."""
    told = io.StringIO()
    defaults = {"every": None, "keep_every": None, "steps_per_epoch": EPOCH, "about": {"config": {}}, "first": True}
    callback = Checkpoints(run, console=Console(file=told, width=500), **(defaults | options))
    hooks = Hooks(act)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback, hooks], default_root_dir=run,
    )  # fmt: skip
    trainer.strategy.checkpoint_io = CheckpointFiles()
    callback.trainer = trainer  # type: ignore[attr-defined]
    path = None if resume is None else checkpoint_path(run, resume)
    try:
        trainer.fit(Toy(), Batches(lambda: trainer.global_step), ckpt_path=path, weights_only=True)  # type: ignore[arg-type]
    finally:
        hooks.told = told.getvalue()  # type: ignore[attr-defined]
    return hooks, callback, told.getvalue()


def at(step: int, hook: str, action: Callable[[pl.Trainer], None]) -> Callable[[pl.Trainer, str], None]:
    return lambda trainer, where: action(trainer) if (trainer.global_step, where) == (step, hook) else None


def fails(trainer: pl.Trainer) -> None:
    raise RuntimeError("as planned")


def step_of(run: Path, name: str) -> int:
    return int(read_checkpoint(checkpoint_path(run, name))["global_step"])


@pytest.mark.parametrize("step", range(1, STEPS))
def test_lightning_goes_on_where_it_stood(step: int, tmp_path: Path) -> None:
    """Hooks, counts, batches, losses and rates after a resume are those that follow in a run without a stop."""
    whole, _, _ = fit(tmp_path / "whole")
    if step % EPOCH:  # an error while the next batch is on its way, or as the next epoch starts
        stopped = tmp_path / "stopped"
        with pytest.raises(RuntimeError, match="as planned"):
            fit(stopped, at(step, "batch start", fails))
    else:
        stopped = tmp_path / "stopped"
        with pytest.raises(RuntimeError, match="as planned"):
            fit(stopped, at(step, "epoch start", fails))
    assert step_of(stopped, "last") == step
    rest, _, _ = fit(stopped, resume="last")
    place = [call[:2] for call in whole.calls].index(("batch start" if step % EPOCH else "epoch start", step))
    assert rest.calls == whole.calls[place:]
    a, b = (read_checkpoint(checkpoint_path(tmp_path / name, "last")) for name in ("whole", "stopped"))
    assert difference(a, b) is None


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, {4, 8, 12, 14}),  # epochs and the end
        ({"every": 3}, {3, 6, 9, 12, 14}),
        ({"every": 3, "keep_every": 1}, {3, 4, 6, 8, 9, 12, 14}),
        ({"every": 100}, {14}),
        ({"every": 100, "keep_every": 2}, {8, 14}),
    ],
)
def test_when_checkpoints_are_written(
    options: dict[str, Any], steps: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    original = checkpoints.write_checkpoint
    monkeypatch.setattr(
        checkpoints, "write_checkpoint", lambda c, p: (written.append(c["global_step"]), original(c, p))[1]
    )
    fit(tmp_path, **options)
    assert written == sorted(steps)
    kept = [n * EPOCH for n in range(1, STEPS // EPOCH + 1) if n % options.get("keep_every", STEPS) == 0]
    assert checkpoint_names(tmp_path) == ["last", *(f"epoch-{step // EPOCH:04d}" for step in kept)]
    for step in kept:
        assert step_of(tmp_path, f"epoch-{step // EPOCH:04d}") == step


def test_the_best_is_kept_and_outlives_a_resume(tmp_path: Path) -> None:
    values = {2: 10.0, 4: 30.0, 6: 20.0, 8: 25.0, 12: 40.0}

    def measure(trainer: pl.Trainer, hook: str) -> None:
        if hook == "batch start":
            trainer.callback_metrics.pop(KEY, None)
        if hook == "batch end" and trainer.global_step in values:
            trainer.callback_metrics[KEY] = torch.tensor(values[trainer.global_step])
        if hook == "batch start" and trainer.global_step == 10 and not again:
            fails(trainer)

    again = False
    with pytest.raises(RuntimeError, match="as planned"):
        fit(tmp_path, measure)
    assert step_of(tmp_path, "best") == 4
    again = True
    del values[12]
    values[11] = 29.0
    fit(tmp_path, measure, resume="last")
    assert step_of(tmp_path, "best") == 4  # 29 is less than the 30 of before
    checkpoint_path(tmp_path, "best").replace(checkpoint_path(tmp_path, "last"))
    values[11] = 31.0
    fit(tmp_path, measure, resume="last")
    assert step_of(tmp_path, "best") == 11


def test_other_names_cost_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, every=4, keep_every=1)
    kept = checkpoint_path(tmp_path, "epoch-0001")
    before = kept.read_bytes()
    fit(tmp_path / "two", keep_every=3)
    last, other = (checkpoint_path(tmp_path / "two", name) for name in ("last", "epoch-0003"))
    assert other.stat().st_nlink == 1  # last has gone on since: its old file has this name alone
    assert step_of(tmp_path / "two", "last") == STEPS
    assert last.stat().st_ino != other.stat().st_ino
    assert kept.read_bytes() == before

    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", no_links)
    fit(tmp_path / "three", keep_every=3)
    assert step_of(tmp_path / "three", "epoch-0003") == 12


def test_after_an_error_a_checkpoint_is_of_a_whole_step_or_not_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="as planned"):  # an alarm, say, after the optimizer's turn
        fit(tmp_path / "late", at(6, "batch end", fails))
    assert step_of(tmp_path / "late", "last") == 4

    with pytest.raises(RuntimeError, match="as planned"):
        fit(tmp_path / "end", at(8, "epoch end", fails))
    assert step_of(tmp_path / "end", "last") == 4

    with pytest.raises(RuntimeError, match="as planned"):
        fit(tmp_path / "early", at(6, "batch start", fails))
    assert step_of(tmp_path / "early", "last") == 6


def test_ctrl_c_twice_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice(trainer: pl.Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(SystemExit):
            fit(tmp_path, at(6, "batch start", twice))
    finally:
        signal.signal(signal.SIGINT, before)
    assert step_of(tmp_path, "last") == 4


def test_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = fit(tmp_path / "whole")
    full = False
    save = torch.save

    def fill(thing: Any, file: Any) -> None:
        if full:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(thing, file)

    def disk(trainer: pl.Trainer, hook: str) -> None:
        nonlocal full
        full = 6 <= trainer.global_step <= 9

    monkeypatch.setattr(torch, "save", fill)
    hooks, callback, told = fit(tmp_path / "full", disk)
    assert hooks.calls == whole.calls
    lines = told.splitlines()
    assert len(lines) == 1
    last = checkpoint_path(tmp_path / "full", "last")
    assert lines[0].startswith(f"checkpoint of step 8 failed: cannot write {last}")
    assert "No space left on device; what was there is kept (0.0 MB needed" in lines[0]
    assert callback.problem is None
    assert step_of(tmp_path / "full", "last") == STEPS
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_disk_that_is_full_at_the_end_is_an_error_that_resume_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "full"
    with monkeypatch.context() as patch:
        save = torch.save

        def fill(thing: Any, file: Any) -> None:
            if thing["global_step"] > 8:
                file.write(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(thing, file)

        patch.setattr(torch, "save", fill)
        message = r"training is done, but its last .* No space left .*; make room, then finish from step 8 with: ssl-"
        with pytest.raises(UserError, match=message):
            fit(run)
    assert step_of(run, "last") == 8
    fit(tmp_path / "whole")
    fit(run, resume="last")
    a, b = (read_checkpoint(checkpoint_path(path, "last")) for path in (tmp_path / "whole", run))
    assert difference(a, b) is None


@pytest.mark.parametrize("where", ["weight", "buffer", "momentum"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_replaces_what_is(where: str, value: float, tmp_path: Path) -> None:
    def spoil(trainer: pl.Trainer) -> None:
        net, optimizer = trainer.lightning_module.net, trainer.optimizers[0]  # type: ignore[union-attr]
        tensor = {
            "weight": net[1].weight,
            "buffer": net[0].running_var,
            "momentum": optimizer.state[net[1].bias].get("momentum_buffer"),
        }[where]
        with torch.no_grad():
            tensor.view(-1)[0] = value

    with pytest.raises(UserError, match=r"the run has diverged: .* is not finite; .*the last good one is of step 4"):
        fit(tmp_path, at(6, "batch end", spoil))
    assert step_of(tmp_path, "last") == 4
    assert not_finite(read_checkpoint(checkpoint_path(tmp_path, "last"))) is None


@pytest.mark.parametrize("step", [6, 8, STEPS])
def test_a_signal_stops_between_two_steps(step: int, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    ask = at(step - 1, "batch start", lambda trainer: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM"):
        fit(tmp_path, ask)
    assert step_of(tmp_path, "last") == step
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    fit(tmp_path / "whole")
    fit(tmp_path, resume="last")
    a, b = (read_checkpoint(checkpoint_path(run, "last")) for run in (tmp_path / "whole", tmp_path))
    assert difference(a, b) is None
