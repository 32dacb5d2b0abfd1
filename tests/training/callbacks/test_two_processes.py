"""Two processes write one row for each step, measure together, and stop together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import quick_overrides
from tests.training.callbacks.helpers import rows

OPTIONS = ["name=run", "trainer.log_every=1", "trainer.device=cpu", "trainer.devices=2", "monitor.knn_every=1"]


def run(runs: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssl_toolkit.cli", "pretrain", *quick_overrides(runs, "vicreg"), *OPTIONS]
    return subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_one_process_writes_what_all_have_waited_for(tmp_path: Path) -> None:
    done = run(tmp_path, "trainer.steps=5")
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "run")
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5"]
    assert [bool(row["knn_top1"]) for row in table] == [False, False, False, True, True]
    assert all(1 <= float(row["pooled_rank"]) <= 8 for row in table)  # of the images of process 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert done.stdout.count("epoch 1/2") == 1


@pytest.mark.command
def test_both_stop_and_each_keeps_its_images(tmp_path: Path) -> None:
    done = run(tmp_path, "optimizer.lr=1e30")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("stopped after 3 such steps in a row") == 1
    names = sorted(path.name for path in (tmp_path / "run" / "failures").iterdir())
    assert names == [f"step-00000{step}{rank}.pt" for step in (2, 3, 4) for rank in ("-rank1", "")]
