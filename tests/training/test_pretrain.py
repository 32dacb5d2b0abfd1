"""Assembling a run: what is checked before any work, and what a run folder is."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.parts import resolved
from tests.helpers import quick_overrides


def test_parts_agree_with_the_config(tmp_path: Path) -> None:
    config = compose_config("pretrain", [*quick_overrides(tmp_path), "trainer.batch_size=20"])
    parts = training.assemble(config)
    assert parts.steps_per_epoch == 3  # 64 // 20, the rest dropped
    assert parts.total_steps == 6
    assert parts.map_sizes == [(6, 6), (6, 6)]
    config.trainer.steps = 5
    assert training.assemble(config).total_steps == 5


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(7)  # whatever happened before
        config = compose_config("pretrain", [*quick_overrides(tmp_path), f"seed={seed}"])
        return torch.cat([p.flatten() for p in training.assemble(config).method.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=1", "batch_size must be at least 2, not 1"),
        ("trainer.epochs=0", "epochs must be at least 1"),
        ("trainer.workers=-1", "workers must not be negative"),
        ("seed=-1", "seed must not be negative"),
        ("data.mean=[0.5] data.std=[0.5]", "mean has 1 channels, digit scenes have 3"),
        ("views.groups.0.size=4", "size >= 8"),
        ("optimizer.lr=0", "lr must be positive"),
    ],
)
def test_impossible_runs_are_refused(override: str, message: str, tmp_path: Path) -> None:
    config = compose_config("pretrain", [*quick_overrides(tmp_path), *override.split()])
    with pytest.raises(UserError, match=message):
        training.assemble(config)


def test_presets_are_written_out(tmp_path: Path) -> None:
    config = compose_config("pretrain", [*quick_overrides(tmp_path), "method.preset=paper"])
    stored = resolved(config)
    assert stored.method.local.gamma == [20.0, 4.0]
    assert stored.method.local.sum_directions is True
    assert resolved(stored) == stored
    assert config.method.local.gamma is None


def test_no_two_runs_share_a_folder(tmp_path: Path) -> None:
    paths = [training.new_run_folder(tmp_path, "same") for _ in range(3)]
    assert [p.name for p in paths] == ["same", "same-2", "same-3"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        training.new_run_folder(tmp_path / "file", "run")


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read as YAML"):
        training.read_run_config(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="it has no 'method'"):
        training.read_run_config(tmp_path)


@pytest.mark.command
def test_what_starts_later_starts_when_it_should(tmp_path: Path) -> None:
    """The trainer tells the method how far it is, and a term that begins in the middle gets its column."""
    late = ["method.local.feature_after=0.5", "trainer.log_every=1", "monitor.knn_every=null"]
    run = training.pretrain(compose_config("pretrain", [*quick_overrides(tmp_path), *late]), Console(quiet=True))
    with (run / "metrics.csv").open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert [step for step, row in rows.items() if row["feature_invariance"]] == [5, 6, 7, 8]
    assert [step for step, row in rows.items() if row["location_invariance"]] == list(range(1, 9))
