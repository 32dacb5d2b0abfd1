"""The list of runs: each state, the numbers, and order."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.listing import list_runs, runs_csv, runs_table
from tests.reporting.synthetic_runs import make_run


def states(root: Path) -> dict[str, str]:
    return {run.path.name: run.state for run in list_runs(root)}


def make(folder: Path) -> Path:
    """A run that has begun: no weights, no checkpoint, no results."""
    run = make_run(folder)
    for path in [run / "backbone.safetensors", *(run / "results").glob("*")]:
        path.unlink(missing_ok=True)
    return run


def test_states(tmp_path: Path) -> None:
    make(tmp_path / "begun")
    stopped = make(tmp_path / "stopped")
    (stopped / "checkpoints").mkdir(exist_ok=True)
    (stopped / "checkpoints" / "last.ckpt").touch()
    finished = make(tmp_path / "deeper" / "finished")
    (finished / "backbone.safetensors").touch()
    baseline = make(tmp_path / "untrained")
    (baseline / "config.yaml").write_text("method: {name: untrained}\nseed: 0\n")
    broken = make(tmp_path / "broken")
    (broken / "metrics.csv").write_text("step,loss\n1\n")
    assert states(tmp_path) == {
        "begun": "begun",
        "stopped": "stopped",
        "finished": "finished",
        "untrained": "untrained",
        "broken": "unreadable",
    }
    problem = next(run.problem for run in list_runs(tmp_path) if run.path == broken)
    assert "metrics.csv line 2" in problem


def test_a_run_that_another_process_trains_is_running(tmp_path: Path) -> None:
    run = make(tmp_path / "mine")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # a process's own locks are no obstacle to it
        with (run / ".lock").open("a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        assert states(tmp_path) == {"mine": "running"}
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert states(tmp_path) == {"mine": "begun"}


def test_numbers_are_those_of_evaluations_or_else_the_best_of_the_probes(tmp_path: Path) -> None:
    evaluated = make_run(tmp_path / "evaluated", "vicreg", 63.2, 24.4)
    probed = make(tmp_path / "probed")
    (probed / "metrics.csv").write_text("step,loss,knn_top1\n1,3,\n2,2,40\n3,1,35\n")
    found = {run.path: run for run in list_runs(tmp_path)}
    assert found[evaluated].numbers["linear top-1"] == 63.2
    assert found[evaluated].numbers["mIoU"] == 24.4
    assert found[probed].numbers == {"kNN probe": 40.0}
    assert found[probed].step == 3


def test_the_last_to_change_comes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "older")):
        run = make(tmp_path / name)
        for path in run.rglob("*"):
            os.utime(path, (1e9 - age, 1e9 - age))
    assert [run.path.name for run in list_runs(tmp_path)] == ["new", "old", "older"]


def test_the_table_fits_eighty_columns_and_the_csv_holds_every_number(tmp_path: Path) -> None:
    make_run(tmp_path / "a-run-with-a-very-long-name-that-says-all-of-its-options-seed-0", "vicregl", 70.7, 32.8)
    make_run(tmp_path / "vicreg", "vicreg", 63.2, 24.4)
    runs = list_runs(tmp_path)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(runs_table(runs, tmp_path))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "mIoU 32.8" in text
    rows = list(csv.DictReader(runs_csv(runs, tmp_path).splitlines()))
    assert {row["run"]: row["mIoU"] for row in rows}["vicreg"] == "24.4000"


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*missing"):
        list_runs(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no runs"):
        list_runs(tmp_path)
