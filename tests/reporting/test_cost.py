"""Cost of a run from what it logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_toolkit.reporting.cost import cost, cost_rows
from ssl_toolkit.reporting.runs import RunFolder
from tests.reporting.synthetic_runs import make_run


def logged(folder: Path, text: str, config: str = "method: {name: x}\ntrainer: {batch_size: 60}\n") -> RunFolder:
    run = make_run(folder)
    (run / "metrics.csv").write_text(text)
    (run / "config.yaml").write_text(config)
    return RunFolder.read(run)


def test_the_time_of_all_steps_at_the_median_speed(tmp_path: Path) -> None:
    run = logged(tmp_path / "a", "step,images_per_second,peak_memory_gib\n1,50,2\n10,100,3\n100,400,\n")
    assert cost(run) == pytest.approx({"images/s": 100, "training minutes": 100 * 60 / 100 / 60, "peak GiB": 3})


def test_what_was_not_logged_is_left_out(tmp_path: Path) -> None:
    bare = logged(tmp_path / "bare", "step,loss\n1,2\n")
    no_batch = logged(tmp_path / "no_batch", "step,images_per_second\n1,1234.4\n", "method: {name: x}\n")
    assert cost(bare) == {}
    assert cost_rows([bare, no_batch]) == {"cost: images/s": ["", "1,234"]}
    assert cost_rows([bare]) == {}
