"""A failed step, done again from its file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.cli import main
from ssl_toolkit.criteria.families import VICRegCriterion
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.callbacks.failures import failure_path
from ssl_toolkit.training.replay import broken_weights
from tests.test_cli import error_of
from tests.training.callbacks.helpers import pretrain, rows

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rate was far too high."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.raises(UserError, match="stopped after 3 such steps in a row"):
        pretrain(runs, "optimizer.lr=1e30")
    return runs / "run"


@pytest.mark.command
def test_replay_says_where_it_broke(diverged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((diverged / "failures").iterdir())
    assert len(files) == 3
    capsys.readouterr()
    assert main(["replay", str(files[0])]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "embeddings[0] of shape (16, 32)" in text
    assert "the first output that is not finite is that of backbone.blocks.0.conv1" in text
    assert "all finite before this step; the largest: " in text
    stored = torch.load(files[0], weights_only=True)
    assert ", ".join(map(str, stored["batch"]["index"].tolist())) in text


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replay_finds_the_loss_of_the_step(accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that failed for a reason that is gone has the loss it would have had in the run."""
    options = [f"trainer.accumulate={accumulate}", "trainer.steps=2"]
    whole = rows(pretrain(tmp_path / "whole", *options))[1]
    with monkeypatch.context() as patch:
        original, done = VICRegCriterion.views, [0]

        def views(self: VICRegCriterion, *args: object) -> object:
            done[0] += 1
            if done[0] == 2:
                raise training.module.NonFiniteError("a cosmic ray")
            return original(self, *args)  # type: ignore[arg-type]

        patch.setattr(VICRegCriterion, "views", views)
        run = pretrain(tmp_path / "failed", *options)
    attempts = training.replay(run / "failures" / "step-000002.pt", QUIET)
    assert [attempt.precision for attempt in attempts] == ["fp32"]  # the run's own
    assert f"{attempts[0].loss:.6g}" == whole["loss"]
    assert {name: f"{value:.6g}" for name, value in attempts[0].terms.items()} == {
        name: whole[name] for name in ("global_invariance", "global_variance", "global_covariance")
    }
    assert attempts[0].layer is None
    assert attempts[0].failure is None


def test_weights_that_are_broken_are_named(diverged: Path, tmp_path: Path) -> None:
    weights = {"a": torch.tensor([1.0, math.nan, math.inf]), "b": torch.ones(3), "count": torch.tensor(3)}
    assert broken_weights(weights) == ["a: norm nan, 2 of 3 values are not finite"]
    stored = torch.load(sorted((diverged / "failures").iterdir())[0], weights_only=True)
    stored["weights"]["head.0.weight"][0, 0] = math.inf
    (tmp_path / "failures").mkdir()
    (tmp_path / "config.yaml").write_text((diverged / "config.yaml").read_text())
    torch.save(stored, tmp_path / "failures" / "step-000002.pt")
    console = Console(record=True, width=2000)
    training.replay(tmp_path / "failures" / "step-000002.pt", console)
    text = console.export_text()
    assert "not finite before this step, so an earlier one broke them: head.0.weight: norm inf, 1 of" in text


def test_files_of_other_processes_take_the_weights_of_the_first(diverged: Path, tmp_path: Path) -> None:
    stored = torch.load(sorted((diverged / "failures").iterdir())[0], weights_only=True)
    (tmp_path / "failures").mkdir()
    (tmp_path / "config.yaml").write_text((diverged / "config.yaml").read_text())
    for rank in (0, 1):
        path = failure_path(tmp_path, stored["step"], rank)
        torch.save({**stored, "rank": rank, "weights": {} if rank else stored["weights"]}, path)
    assert path.name == "step-000002-rank1.pt"
    assert training.replay(path, QUIET)[0].layer == "backbone.blocks.0.conv1"


def test_what_cannot_be_replayed_is_refused(
    diverged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    assert "there is no file" in error_of(capsys, "replay", str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("not a tensor")
    assert "cannot be read as a failed step" in error_of(capsys, "replay", str(tmp_path / "text.pt"))
    torch.save({"a": 1}, tmp_path / "other.pt")
    assert "is not a failed step of a run" in error_of(capsys, "replay", str(tmp_path / "other.pt"))
    file = sorted((diverged / "failures").iterdir())[0]
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    assert "has no config.yaml" in error_of(capsys, "replay", str(tmp_path / "moved" / file.name))
