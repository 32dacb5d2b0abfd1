"""Match overlays while a run trains: they are there, they show the network of their step, they change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.matches import read_matches
from ssl_toolkit.reporting.report import write_report
from ssl_toolkit.training.callbacks import MatchPictures, MonitorConfig
from tests.helpers import quick_overrides

QUIET = Console(quiet=True)


def train(folder: Path, *more: str) -> Path:
    return training.pretrain(compose_config("pretrain", [*quick_overrides(folder), "trainer.epochs=3", *more]), QUIET)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("matches")
    return train(folder, "name=plain"), train(folder, "name=watched", "monitor.matches_every=1")


@pytest.mark.command
def test_there_is_one_for_each_epoch_and_the_end(runs: tuple[Path, Path]) -> None:
    plain, watched = runs
    assert [p.name for p in (plain / "examples").glob("matches*")] == ["matches.npz"]
    names = sorted(p.name for p in (watched / "examples").glob("matches*"))
    assert names == ["matches-step-000004.npz", "matches-step-000008.npz", "matches.npz"]
    first, second, last = (read_matches(watched / "examples" / name) for name in names)
    for a, b in ((first, second), (second, last)):
        np.testing.assert_array_equal(a[0].boxes, b[0].boxes)
        np.testing.assert_array_equal(a[0].matches["location"].index, b[0].matches["location"].index)
        assert (a[0].matches["feature"].distance != b[0].matches["feature"].distance).any()


@pytest.mark.command
def test_watching_changes_nothing(runs: tuple[Path, Path]) -> None:
    plain, watched = (load_file(run / "backbone.safetensors") for run in runs)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


@pytest.mark.command
def test_the_report_shows_them_in_order(runs: tuple[Path, Path]) -> None:
    plain, watched = (write_report(run).read_text() for run in runs)
    assert "How matches changed in training" not in plain
    assert watched.index("Step 4: mean true error") < watched.index("Step 8: mean") < watched.index("End: mean")


def test_what_cannot_be_written_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        raise UserError("cannot write it: the disk is full")

    class Trainer:
        global_step, max_steps, is_global_zero = 4, 8, True

    console = Console(record=True, quiet=False, width=200)
    MatchPictures(tmp_path, 4, save, console).on_train_batch_end(Trainer(), None, None, None, 0)  # type: ignore[arg-type]
    assert "the disk is full" in console.export_text()


def test_a_bad_number_is_refused() -> None:
    with pytest.raises(ValueError, match="matches_every must be at least 1"):
        MonitorConfig(matches_every=0)
