"""The demo, at a size of seconds: three folders, one table, one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_toolkit.cli import main

SMALL = [
    "trainer.steps=2",
    "trainer.batch_size=16",
    "trainer.workers=0",
    "data.train_size=64",
    "data.val_size=32",
    "data.test_size=32",
]


@pytest.mark.command
def test_the_demo_compares_three_backbones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *SMALL]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "untrained", "vicreg", "vicregl"]
    for run in ("untrained", "vicreg", "vicregl"):
        for protocol in ("knn", "linear", "segmentation"):
            result = json.loads((folder / run / "results" / f"{protocol}-digit_scenes.json").read_text())
            assert result["source"] == run
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "kNN top-1" in shown
    assert str(folder.relative_to(tmp_path) / "report.html") in shown
    page = (folder / "report.html").read_text()
    for piece in ("data:image/png;base64,", "Which local features were matched", "vicregl", "mIoU"):
        assert piece in page
