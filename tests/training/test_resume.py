"""A stopped run continues to the very weights, rates and metrics of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import load_file

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.callbacks import MetricsFile
from tests.helpers import needs_dali, quick_overrides

QUIET = Console(quiet=True)


def config(runs: Path, name: str, engine: str = "torch") -> DictConfig:
    options = [f"name={name}", "trainer.log_every=1", f"views.engine={engine}"]
    return compose_config("pretrain", [*quick_overrides(runs), *options])


class Killed(Exception):
    """Stands for whatever stops a run."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MetricsFile.on_train_batch_end

    def stopping(self: MetricsFile, trainer: object, *args: object) -> None:
        original(self, trainer, *args)  # type: ignore[arg-type]
        if trainer.global_step == step:  # type: ignore[attr-defined]
            raise Killed

    monkeypatch.setattr(MetricsFile, "on_train_batch_end", stopping)


def columns(path: Path) -> list[list[str]]:
    """Rows without the timing column."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    skip = rows[0].index("images_per_second")
    return [[v for i, v in enumerate(row) if i != skip] for row in rows]


@pytest.mark.parametrize(
    ("step", "saves", "engine"),
    [
        (2, True, "torch"),  # inside the first epoch
        (4, True, "torch"),  # at its end
        (5, True, "torch"),  # inside the second
        (6, False, "torch"),  # as kill -9 there: only the checkpoint of the first epoch's end is left
        pytest.param(5, True, "dali", marks=needs_dali),
    ],
)
def test_resumed_equals_uninterrupted(
    step: int, saves: bool, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training.pretrain(config(tmp_path, "whole", engine), QUIET)
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        if not saves:
            patch.setattr(ModelCheckpoint, "on_exception", lambda *_: None)
        with pytest.raises(Killed):
            training.pretrain(config(tmp_path, "stopped", engine), QUIET)
    stopped = tmp_path / "stopped"
    left = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert left["global_step"] == (step if saves else 4)
    assert not (stopped / "backbone.safetensors").exists()
    training.resume(stopped, training.read_run_config(stopped), QUIET)

    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, stopped))
    assert a["global_step"] == b["global_step"] == 8
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert columns(whole / "metrics.csv") == columns(stopped / "metrics.csv")
    first, second = (load_file(run / "backbone.safetensors") for run in (whole, stopped))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        training.read_run_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        training.read_run_config(tmp_path)
    run = training.pretrain(config(tmp_path, "done"), QUIET)
    saved = training.read_run_config(run)
    with pytest.raises(UserError, match="is finished; start a new run with init="):
        training.resume(run, saved, QUIET)
    (run / "backbone.safetensors").unlink()
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match="stopped before its first checkpoint"):
        training.resume(run, saved, QUIET)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = config(tmp_path, "diverging")
    broken.optimizer.lr = 1e30
    with pytest.raises(UserError, match=r"not finite at step \d+: embeddings.* lower optimizer\.lr"):
        training.pretrain(broken, QUIET)
