"""A trainer as callbacks see it, and runs of seconds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from tests.helpers import quick_overrides


class FakeTrainer:
    """What callbacks read of a trainer, at ``step``."""

    is_global_zero = True
    max_steps = 100
    train_dataloader: Any = None

    def __init__(self, step: int = 0) -> None:
        self.global_step = step
        self.callback_metrics: dict[str, Any] = {}


def pretrain(runs: Path, *overrides: str, method: str = "vicreg", console: Console | None = None) -> Path:
    """A run of two epochs of four steps, a row for each."""
    options = ["name=run", "trainer.log_every=1", "monitor.knn_every=1"]
    if "vicreg" in method:
        options.append("method.expander.widths=[32,32]")
    config = compose_config("pretrain", [*quick_overrides(runs, method), *options, *overrides])
    return training.pretrain(config, console or Console(quiet=True))


def rows(run: Path) -> list[dict[str, str]]:
    """Rows of ``metrics.csv``."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
