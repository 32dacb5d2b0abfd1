"""The section ``monitor`` and the schedule it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed
from ssl_toolkit.training.callbacks import MonitorConfig, Schedule
from tests.helpers import quick_overrides


def test_the_section_holds_the_defaults() -> None:
    assert typed(MonitorConfig, compose_config("pretrain").monitor, "monitor") == MonitorConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knn_every": 0}, "knn_every must be at least 1, not 0; null turns it off"),
        ({"knn_images": 0}, "knn_images must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"best": "acc"}, "best must be one of knn, linear, loss or null, not 'acc'"),
        ({"best": "linear", "linear": False}, "best=linear needs the linear probe"),
        ({"best": "knn", "knn_every": None}, "best=knn is measured on validation images: set knn_every"),
        ({"loggers": ["wandbb"]}, "unknown logger 'wandbb': did you mean 'wandb'"),
        ({"wandb": {"mode": "of"}}, "mode must be one of online, offline, disabled, not 'of'"),
        ({"patiense": 3}, "unknown key 'monitor.patiense': did you mean 'patience'"),
        ({"knn_every": "often"}, "monitor.knn_every"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        typed(MonitorConfig, options, "monitor")
    assert message in str(caught.value)


def test_a_run_checks_the_section_first(tmp_path: Path) -> None:
    config = compose_config("pretrain", [*quick_overrides(tmp_path), "monitor.patience=0"])
    with pytest.raises(UserError, match="monitor: patience must be at least 1"):
        training.assemble(config)
    OmegaConf.set_struct(config, False)
    del config["monitor"]  # of a run older than the section
    assert training.assemble(config).monitor == MonitorConfig()


def test_the_schedule_by_counting() -> None:
    schedule = Schedule(log_every=4, steps_per_epoch=5, total_steps=23, knn_every=2)
    steps = range(1, 24)
    assert [s for s in steps if schedule.ends_epoch(s)] == [5, 10, 15, 20, 23]
    assert [s for s in steps if schedule.probed(s)] == [10, 20, 23]
    assert [s for s in steps if schedule.logged(s)] == [1, 4, 8, 10, 12, 16, 20, 23]
    never = Schedule(log_every=4, steps_per_epoch=5, total_steps=23)
    assert [s for s in steps if never.probed(s)] == []
    assert [s for s in steps if never.logged(s)] == [1, 4, 8, 12, 16, 20, 23]
