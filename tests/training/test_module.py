"""One step of training: what it returns, and that a failed one changes nothing."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_toolkit.methods import METHODS
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.views.batch import ViewBatch
from tests.helpers import TinyBackbone, random_batch

VICREGL = {"name": "vicregl", "expander": {"widths": [8, 8]}, "projector": {"widths": [8, 8]}}


def module(optimizer: str = "adamw", accumulate: int = 1, seed: int = 0, step: int = 0) -> Pretraining:
    torch.manual_seed(1)
    return Pretraining(
        METHODS.build(VICREGL, backbone=TinyBackbone()),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        optimizer={"name": optimizer, "lr": 0.1},
        batch_size=8,
        steps_per_epoch=4,
        total_steps=8,
        accumulate=accumulate,
        seed=seed,
        position=lambda: step,
    ).train()


def broken(batch: ViewBatch) -> ViewBatch:
    images = iter([float("nan"), 1.0])
    return batch.with_images(lambda image: image * next(images))


def update(trained: Pretraining, optimizer: torch.optim.Optimizer, batch: ViewBatch) -> dict[str, object]:
    """What Lightning does with a step."""
    output = trained.training_step(batch, 0)
    trained.optimizer_zero_grad(0, 0, optimizer)
    output["loss"].backward()
    trained.on_before_optimizer_step(optimizer)
    optimizer.step()
    return dict(output)


def state(trained: Pretraining, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    held = [value for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
    return [tensor.clone() for tensor in (*trained.state_dict().values(), *held)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_failed_step_changes_nothing(name: str, accumulate: int) -> None:
    trained = module(name, accumulate)
    optimizer = trained.configure_optimizers()["optimizer"]
    optimizer.param_groups[0]["lr"] = 0.1
    batch = random_batch(8)
    assert update(trained, optimizer, batch)["failure"] is None
    before = state(trained, optimizer)
    output = update(trained, optimizer, broken(batch))
    assert "not finite" in str(output["failure"])
    assert math.isnan(output["loss"].detach())
    assert output["pooled"] is None
    assert output["terms"] == {}
    assert all(torch.equal(a, b) for a, b in zip(before, state(trained, optimizer)))
    assert update(trained, optimizer, batch)["failure"] is None
    after = state(trained, optimizer)
    assert not all(torch.equal(a, b) for a, b in zip(before, after))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_random_depends_on_seed_and_step_alone(accumulate: int) -> None:
    def loss(**options: int) -> float:
        trained = module(accumulate=accumulate, **options)
        trained.method.backbone.net.append(torch.nn.Dropout(0.5))
        torch.rand(int(torch.randint(1, 9, ())))  # whatever happened before
        return float(trained.training_step(random_batch(8), 0)["loss"].detach())

    first = loss()
    assert loss() == first
    assert loss(seed=1) != first
    assert loss(step=1) != first


def test_parts_give_the_gradient_of_one_pass_through_lightning() -> None:
    grads = []
    for accumulate in (1, 4):
        trained = module(accumulate=accumulate)
        trained.method.eval()  # norms by running statistics: each image by itself
        optimizer = trained.configure_optimizers()["optimizer"]
        for _ in range(2):  # what the first step leaves must not count in the second
            output = trained.training_step(random_batch(8), 0)
            trained.optimizer_zero_grad(0, 0, optimizer)
            output["loss"].backward()
        grads.append([p.grad for p in trained.parameters()])
    for one, two in zip(*grads):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
