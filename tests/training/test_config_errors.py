"""Configs that cannot work stop with one line and status 2, before any work: no run folder is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_toolkit.cli import main
from tests.helpers import quick_overrides

CASES = [
    ("trainer.batchsize=32", "unknown key 'trainer.batchsize': did you mean 'trainer.batch_size'"),
    ("trainer.clip_norm=-1", "clip_norm must be positive, not -1"),
    ("trainer.accumulate=0", "accumulate must be at least 1, not 0"),
    ("trainer.accumulate=3", "trainer.batch_size: 16 images do not divide by 3 parts (trainer.accumulate); take 15"),
    ("trainer.accumulate=16", "16 images leave 1 to a pass through the network"),
    ("trainer.checkpoint_every=0", "checkpoint_every must be at least 1, not 0"),
    ("trainer.devices=-1", "devices must not be negative, not -1"),
    ("trainer.precision=fp8", "unknown precision 'fp8'"),
    ("method.local.gamma=[20,4]", "method.local.gamma: 20 pairs asked of a large view whose map has 3x3 = 9 cells"),
    ("views.groups.0.interpolation=nearest", "interpolation"),
]


@pytest.mark.parametrize(("overrides", "message"), CASES, ids=[case[0] for case in CASES])
def test_one_line_and_no_folder(
    overrides: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = quick_overrides(tmp_path / "runs")
    if "gamma" in overrides:
        options.append("views.groups.0.size=24")
    assert main(["pretrain", *options, *overrides.split()]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert "Traceback" not in printed.out + printed.err
    assert not (tmp_path / "runs").exists()
