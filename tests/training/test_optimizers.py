"""Updates against calculations in float64 by hand, and options that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssl_toolkit.backbones.groups import parameter_groups
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.optimizers import OPTIMIZERS

STEPS = 4
Arrays = dict[str, np.ndarray]
Update = Callable[[np.ndarray, np.ndarray, dict[str, Any], int, bool], np.ndarray]


def build(name: str, module: nn.Module, lr: float, **options: Any) -> torch.optim.Optimizer:
    config = OPTIMIZERS.options({"name": name, "lr": lr, **options})
    groups = parameter_groups(module, config.weight_decay, lr)
    return OPTIMIZERS.entry(name).factory(config, groups=groups)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        module[1].weight.uniform_(0.5, 2)  # so that decay would show
    return module


def gradients(module: nn.Module) -> list[Arrays]:
    random = np.random.default_rng(1)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    return [{name: random.normal(size=shape) for name, shape in shapes.items()} for _ in range(STEPS)]


def check_by_hand(optimizer: torch.optim.Optimizer, module: nn.Module, update: Update) -> None:
    """Steps with the same gradients in torch and by ``update(weight, gradient, state, step, is_weight)``."""
    state: dict[str, dict[str, Any]] = {name: {} for name, _ in module.named_parameters()}
    expected = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    for step, given in enumerate(gradients(module), 1):
        for name, parameter in module.named_parameters():
            parameter.grad = torch.from_numpy(given[name].copy())
        optimizer.step()
        for name, parameter in module.named_parameters():
            expected[name] = update(expected[name], given[name], state[name], step, parameter.ndim > 1)
            np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars(decay: float) -> None:
    module, lr, momentum, eta = network(), 0.5, 0.9, 0.01

    def update(w: np.ndarray, g: np.ndarray, state: dict[str, Any], step: int, is_weight: bool) -> np.ndarray:
        if is_weight:
            trust = eta * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
            g = trust * (g + decay * w)
        state["v"] = momentum * state.get("v", 0) + g
        return w - lr * state["v"]

    check_by_hand(build("lars", module, lr, weight_decay=decay, trust_coefficient=eta), module, update)


def test_lars_is_close_to_the_rule_of_the_published_code() -> None:
    """It divides by |g + decay w|, which differs from |g| + decay |w| by a share of at most 2 decay |w| / |g|."""
    random = np.random.default_rng(0)
    decay = 1e-6
    for scale in (1e-3, 1e-1, 10.0):
        w, g = random.normal(size=512), random.normal(size=512) * scale
        ours = np.linalg.norm(g) + decay * np.linalg.norm(w)
        theirs = np.linalg.norm(g + decay * w)
        bound = 2 * decay * np.linalg.norm(w) / np.linalg.norm(g)
        assert 0 <= ours / theirs - 1 <= bound * (1 + 1e-6)
        assert bound < 0.003


def test_lars_leaves_a_weight_without_gradient_to_its_decay() -> None:
    module = nn.Linear(3, 2).double()
    weight = module.weight.detach().clone()
    optimizer = build("lars", module, 0.5, weight_decay=0.1)
    module.weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), weight * (1 - 0.5 * 0.1))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw(decay: float) -> None:
    module, lr, (b1, b2) = network(), 0.01, (0.8, 0.95)

    def update(w: np.ndarray, g: np.ndarray, state: dict[str, Any], step: int, is_weight: bool) -> np.ndarray:
        w = w * (1 - lr * decay) if is_weight else w
        state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
        state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
        return w - lr * (state["m"] / (1 - b1**step)) / (np.sqrt(state["v"] / (1 - b2**step)) + 1e-8)

    check_by_hand(build("adamw", module, lr, weight_decay=decay, betas=[b1, b2]), module, update)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov: bool) -> None:
    module, lr, momentum, decay = network(), 0.1, 0.7, 0.2

    def update(w: np.ndarray, g: np.ndarray, state: dict[str, Any], step: int, is_weight: bool) -> np.ndarray:
        g = g + decay * w if is_weight else g
        state["v"] = momentum * state.get("v", 0) + g
        return w - lr * (g + momentum * state["v"] if nesterov else state["v"])

    options = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov}
    check_by_hand(build("sgd", module, lr, **options), module, update)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb(decay: float) -> None:
    module, lr, (b1, b2) = network(), 0.01, (0.8, 0.95)

    def update(w: np.ndarray, g: np.ndarray, state: dict[str, Any], step: int, is_weight: bool) -> np.ndarray:
        state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
        state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
        change = (state["m"] / (1 - b1**step)) / (np.sqrt(state["v"] / (1 - b2**step)) + 1e-6)
        if is_weight:
            change = change + decay * w
            change = change * np.linalg.norm(w) / np.linalg.norm(change)
        return w - lr * change

    check_by_hand(build("lamb", module, lr, weight_decay=decay, betas=[b1, b2]), module, update)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("failed", [0, 2])
def test_a_step_without_gradients_changes_nothing(name: str, failed: int) -> None:
    """Neither weights nor moments nor counts: the steps after it are those of a run that never had it."""
    ends = []
    for skip in (False, True):
        module = network()
        optimizer = build(name, module, 0.1)
        for step, given in enumerate(gradients(module)):
            if skip and step == failed:
                optimizer.zero_grad(set_to_none=True)
                optimizer.step()
            for parameter_name, parameter in module.named_parameters():
                parameter.grad = torch.from_numpy(given[parameter_name].copy())
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_saved_optimizer_continues(name: str, tmp_path: Any) -> None:
    module, other = network(), network()
    optimizer = build(name, module, 0.1)
    steps = gradients(module)

    def take(optimizer: torch.optim.Optimizer, module: nn.Module, given: Arrays) -> None:
        for parameter_name, parameter in module.named_parameters():
            parameter.grad = torch.from_numpy(given[parameter_name].copy())
        optimizer.step()

    take(optimizer, module, steps[0])
    take(optimizer, module, steps[1])
    torch.save({"weights": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    other.load_state_dict(saved["weights"])
    resumed = build(name, other, 0.1)
    resumed.load_state_dict(saved["optimizer"])
    for given in steps[2:]:
        take(optimizer, module, given)
        take(resumed, other, given)
    for a, b in zip(module.parameters(), other.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_torchs_optimizers_are_fused(name: str) -> None:
    assert all(group["fused"] for group in build(name, network(), 0.1).param_groups)
    with torch.device("meta"):
        assert not any(group["fused"] for group in build(name, nn.Linear(2, 2), 0.1).param_groups)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_gpu_steps_as_the_cpu_does(name: str) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        module = network().to(device)
        optimizer = build(name, module, 0.1)
        for given in gradients(module):
            for parameter_name, parameter in module.named_parameters():
                parameter.grad = torch.from_numpy(given[parameter_name].copy()).to(device)
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten().cpu() for p in module.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)


def test_rates_scale_with_the_global_batch() -> None:
    assert OPTIMIZERS.options({"name": "lars", "lr": 0.2, "scale_by_batch": True}).peak(2048) == pytest.approx(1.6)
    assert OPTIMIZERS.options({"name": "adamw", "lr": 0.2}).peak(2048) == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamv"}, "did you mean 'adamw'"),
        ({}, "'name' is missing"),
        ({"name": "adamw", "lr": -1}, "lr must be positive"),
        ({"name": "adamw", "lr": float("nan")}, "lr must be positive"),
        ({"name": "adamw", "weight_decay": -1}, "weight_decay must not be negative"),
        ({"name": "adamw", "weight_decay_end": -1}, "weight_decay_end must not be negative"),
        ({"name": "adamw", "warmup_epochs": -1}, "warmup_epochs must not be negative"),
        ({"name": "adamw", "final_factor": 2}, "final_factor must be a share"),
        ({"name": "adamw", "layer_decay": 0}, "layer_decay must be above 0"),
        ({"name": "adamw", "layer_decay": 1.5}, "at most 1"),
        ({"name": "adamw", "betas": [0.9]}, "betas must be two numbers"),
        ({"name": "lamb", "betas": [0.9, 1.0]}, "betas must be two numbers"),
        ({"name": "sgd", "momentum": 1.0}, "momentum must be at least 0"),
        ({"name": "sgd", "momentum": 0, "nesterov": True}, "nesterov needs a momentum"),
        ({"name": "lars", "momentun": 0.9}, "did you mean 'momentum'"),
        ({"name": "lars", "trust_coefficient": 0}, "trust_coefficient must be positive"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OPTIMIZERS.options(options)
