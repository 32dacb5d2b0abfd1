"""Updates against a hand calculation, the schedule at its corners, decay where it belongs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from ssl_toolkit.errors import UserError
from ssl_toolkit.training.optimizers import OPTIMIZERS, cosine_schedule, parameter_groups


def build(name: str, module: nn.Module, lr: float, **options: Any) -> torch.optim.Optimizer:
    config = OPTIMIZERS.options({"name": name, **options})
    groups = parameter_groups(module, config.weight_decay)
    return OPTIMIZERS.entry(name).factory(config, groups=groups, lr=lr)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_by_hand(decay: float) -> None:
    module = layer()
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer = build("lars", module, lr=0.5, weight_decay=decay, momentum=0.9, trust_coefficient=0.01)
    velocity_w, velocity_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(3):
        grad_w = torch.full_like(weight, 0.3 + step)
        grad_b = torch.full_like(bias, -0.2)
        module.weight.grad, module.bias.grad = grad_w.clone(), grad_b.clone()
        optimizer.step()
        trust = 0.01 * weight.norm() / (grad_w.norm() + decay * weight.norm())
        velocity_w = 0.9 * velocity_w + trust * (grad_w + decay * weight)
        velocity_b = 0.9 * velocity_b + grad_b  # a bias is neither adapted nor decayed
        weight, bias = weight - 0.5 * velocity_w, bias - 0.5 * velocity_b
        torch.testing.assert_close(module.weight.detach(), weight, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(module.bias.detach(), bias, rtol=1e-6, atol=1e-9)


def test_adamw_first_step_by_hand() -> None:
    module = layer()
    weight = module.weight.detach().clone()
    optimizer = build("adamw", module, lr=0.01, weight_decay=0.1)
    module.weight.grad = torch.full_like(weight, 5.0)
    module.bias.grad = torch.zeros_like(module.bias)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), weight * (1 - 0.01 * 0.1) - 0.01, rtol=1e-6, atol=1e-8)


def test_sgd_is_sgd() -> None:
    assert isinstance(build("sgd", layer(), lr=0.1), torch.optim.SGD)


def test_only_weights_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    with_decay, without = parameter_groups(module, 0.1)
    assert {p.ndim for p in with_decay["params"]} == {2, 4}
    assert {p.ndim for p in without["params"]} == {1}
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.1, 0.0)


def test_schedule_corners() -> None:
    factor = [cosine_schedule(s, warmup_steps=10, total_steps=110, final_factor=0.1) for s in range(112)]
    assert factor[0] == pytest.approx(1 / 11)
    assert factor[10] == 1.0
    assert factor[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor[110] == factor[111] == pytest.approx(0.1)
    assert factor[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert cosine_schedule(0, 0, 1, 0.0) == 1.0


def test_rates_scale_with_the_global_batch() -> None:
    assert OPTIMIZERS.options({"name": "lars", "lr": 0.2, "scale_by_batch": True}).peak(2048) == pytest.approx(1.6)
    assert OPTIMIZERS.options({"name": "adamw", "lr": 0.2}).peak(2048) == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamv"}, "did you mean 'adamw'"),
        ({}, "'name' is missing"),
        ({"name": "adamw", "lr": -1}, "lr must be positive"),
        ({"name": "adamw", "weight_decay": -1}, "must not be negative"),
        ({"name": "lars", "momentun": 0.9}, "did you mean 'momentum'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OPTIMIZERS.options(options)
