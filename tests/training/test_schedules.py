"""Learning rate and weight decay at their corners, of every group, and after a resume."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssl_toolkit.training.schedules import CosineSchedule, cosine, rate_factor


def test_rates_at_the_corners() -> None:
    factor = [rate_factor(s, warmup_steps=10, total_steps=110, final_factor=0.1) for s in range(112)]
    assert [factor[s] for s in range(10)] == pytest.approx([(s + 1) / 11 for s in range(10)])
    assert factor[10] == 1.0
    assert factor[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor[110] == factor[111] == pytest.approx(0.1)
    assert factor[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_factor(0, 0, 1, 0.0) == 1.0


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    assert [rate_factor(s, 10, 5, 0.0) for s in range(6)] == pytest.approx([(s + 1) / 11 for s in range(6)])


def test_cosine_at_its_ends() -> None:
    assert cosine(0.0, 0.04, 0.4) == pytest.approx(0.04)
    assert cosine(1.0, 0.04, 0.4) == cosine(1.5, 0.04, 0.4) == 0.4
    assert cosine(0.5, 0.04, 0.4) == pytest.approx(0.22)
    assert cosine(0.3, 0.05, 0.05) == 0.05


def optimizer_with(schedule: dict[str, Any]) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    groups: list[dict[str, Any]] = [
        {"params": [layer.weight], "lr": 1.0, "weight_decay": 0.04, "decays": True},
        {"params": [layer.bias], "lr": 0.5, "weight_decay": 0.0, "decays": False},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    options = {"warmup_steps": 2, "total_steps": 10, "final_factor": 0.1, "weight_decay": 0.04, "weight_decay_end": 0.4}
    return optimizer, CosineSchedule(optimizer, **{**options, **schedule})


def follow(optimizer: torch.optim.Optimizer, schedule: CosineSchedule, steps: int) -> list[tuple[float, ...]]:
    seen = []
    for step in range(steps):
        seen.append(tuple(group[key] for group in optimizer.param_groups for key in ("lr", "weight_decay")))
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 0.1 * (step + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of steps in the wrong order
            optimizer.step()
            schedule.step()
    return seen


def test_every_group_follows_its_own_peak_and_only_weights_decay() -> None:
    seen = follow(*optimizer_with({}), 10)
    for step, (lr_w, decay_w, lr_b, decay_b) in enumerate(seen):
        rate = (step + 1) / 3 if step < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 2) / 8))
        decay = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * step / 10))
        assert (lr_w, lr_b) == pytest.approx((rate, rate / 2))
        assert (decay_w, decay_b) == (pytest.approx(decay), 0.0)


def test_constant_weight_decay_stays() -> None:
    assert {seen[1] for seen in follow(*optimizer_with({"weight_decay_end": 0.04}), 10)} == {0.04}


def test_weight_decay_may_start_at_nothing() -> None:
    optimizer, schedule = optimizer_with({"weight_decay": 0.0, "weight_decay_end": 0.4})
    seen = follow(optimizer, schedule, 10)
    assert seen[0][1] == 0.0
    assert seen[5][1] == pytest.approx(0.2)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_saved_schedule_continues_exactly(stop: int, tmp_path: Path) -> None:
    optimizer, schedule = optimizer_with({})
    whole = follow(optimizer, schedule, 10)

    optimizer, schedule = optimizer_with({})
    before = follow(optimizer, schedule, stop)
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "saved")
    optimizer, schedule = optimizer_with({})
    saved = torch.load(tmp_path / "saved", weights_only=True)
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    assert before + follow(optimizer, schedule, 10 - stop) == whole
