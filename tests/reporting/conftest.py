"""Run folders for the tests of reporting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.synthetic_runs import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A trained VICRegL run with everything in it."""
    return make_run(tmp_path / "vicregl")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """An untrained baseline, VICReg and VICRegL, in that order."""
    return [
        make_run(tmp_path / "untrained", "none", 23.1, 13.8, trained=False),
        make_run(tmp_path / "vicreg", "vicreg", 63.2, 24.4),
        make_run(tmp_path / "vicregl", "vicregl", 70.7, 32.8),
    ]
