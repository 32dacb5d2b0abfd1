"""One line for each epoch where there is no terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.training.callbacks.helpers import pretrain, rows


def test_a_log_has_a_line_for_each_epoch(tmp_path: Path) -> None:
    console = Console(record=True, width=200, force_terminal=False)
    run = pretrain(tmp_path, "trainer.steps=6", console=console)
    lines = [line for line in console.export_text().splitlines() if "epoch" in line and line.startswith("vicreg:")]
    pattern = r"vicreg: [\d,]+ images/s, \d+:\d\d left, epoch (\d)/2, loss ([\d.]+), knn ([\d.]+)%, linear [\d.]+%"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match and match[1] for match in found] == ["1", "2"]
    last = [row for row in rows(run) if row["step"] in ("4", "6")]
    for match, row in zip(found, last):
        assert match is not None
        assert float(match[2]) == pytest.approx(float(row["loss"]), abs=6e-4)
        assert float(match[3]) == pytest.approx(float(row["knn_top1"]), abs=0.06)


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    console = Console(record=True, width=200, force_terminal=True)
    pretrain(tmp_path, console=console)
    assert not [line for line in console.export_text().splitlines() if line.startswith("vicreg: ")]
