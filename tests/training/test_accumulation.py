"""Images in parts, the loss of all of them: the gradient is that of the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Features
from ssl_toolkit.criteria import NonFiniteError
from ssl_toolkit.methods import METHODS, Embedded, Method
from ssl_toolkit.training.accumulation import Buffers, accumulated
from ssl_toolkit.views.batch import ViewBatch
from tests.helpers import TinyBackbone, random_batch

HEADS: dict[str, dict[str, Any]] = {
    "vicreg": {"expander": {"widths": [8, 8]}},
    "vicregl": {"expander": {"widths": [8, 8]}, "projector": {"widths": [8, 8]}},
    "simclr": {"projector": {"widths": [8, 8]}},
    "simclr_l": {"projector": {"widths": [8, 8]}, "local_projector": {"widths": [8, 8]}},
}


class Normed(TinyBackbone):
    """With a norm of each image by itself, and dropout if asked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(norm="layer")
        self.net[1] = nn.GroupNorm(1, self.num_features)
        self.net.append(nn.Dropout(dropout))

    def forward(self, images: Tensor) -> Features:
        return super().forward(images)


def method(name: str, backbone: TinyBackbone, **options: Any) -> Method:
    torch.manual_seed(1)
    return METHODS.build({"name": name, **HEADS[name], **options}, backbone=backbone).train()


def seeded(part: int) -> None:
    torch.manual_seed(100 + part)


def grads(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def in_parts_with_a_graph(module: Method, batch: ViewBatch, parts: int) -> Tensor:
    """What `accumulated` is to equal, in the memory of the whole batch."""
    size = len(batch) // parts
    embedded = []
    for part in range(parts):
        seeded(part)
        embedded.append(module.embed(batch.map(lambda t: t[part * size : (part + 1) * size])))  # noqa: B023
    whole = tuple(torch.cat(view) for view in zip(*(e.whole for e in embedded)))
    cells = tuple(torch.cat(view) for view in zip(*(e.cells for e in embedded)))
    pooled = torch.cat([e.pooled for e in embedded])
    features = tuple(torch.cat(view) for view in zip(*(e.features for e in embedded)))
    output = module.compare(Embedded(pooled, whole, cells, embedded[0].sizes, features), batch)
    output.loss.backward()
    return output.loss.detach()


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in HEADS), ("vicregl", {"local": {"feature_space": "embeddings"}})]
)
@pytest.mark.parametrize("parts", [2, 3])
def test_loss_and_gradient_are_those_of_one_pass(name: str, options: dict[str, Any], parts: int) -> None:
    one = method(name, Normed(), **options).double()
    two = copy.deepcopy(one)
    batch = random_batch(12, sizes=(32, 32, 16), dtype=torch.float64)
    expected = one(batch)
    expected.loss.backward()
    found = accumulated(two, batch, parts, Buffers(two), seeded)
    found.loss.backward()
    torch.testing.assert_close(found.loss.detach(), expected.loss.detach(), rtol=1e-6, atol=0)
    assert found.terms.keys() == expected.terms.keys()
    for key, value in expected.terms.items():
        torch.testing.assert_close(found.terms[key], value, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.pooled, expected.pooled)
    want = grads(one)
    assert want.keys() == grads(two).keys() == dict(one.named_parameters()).keys()
    for key, value in grads(two).items():
        torch.testing.assert_close(value, want[key], rtol=1e-6, atol=1e-9 * float(want[key].abs().max()) + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_dropout_are_those_of_parts_that_pass_once(dtype: torch.dtype) -> None:
    backbone = TinyBackbone()
    backbone.net.append(nn.Dropout(0.3))
    one = method("vicregl", backbone)
    two = copy.deepcopy(one)
    batch = random_batch(12, sizes=(32, 32))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = in_parts_with_a_graph(one, batch, 3)
        found = accumulated(two, batch, 3, Buffers(two), seeded).loss
    found.backward()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.detach(), expected, rtol=tolerance, atol=0)
    for key, value in grads(one).items():
        error = (grads(two)[key] - value).norm() / (value.norm() + 1e-4)
        assert error < tolerance, key
    for (key, buffer), other in zip(one.named_buffers(), two.buffers()):
        torch.testing.assert_close(other, buffer, msg=key)  # each part has moved the running statistics once


def test_a_loss_that_is_not_finite_leaves_statistics_alone() -> None:
    module = method("vicregl", TinyBackbone())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    batch = random_batch(4)
    batch.views[0].image[0] = float("nan")
    with pytest.raises(NonFiniteError):
        accumulated(module, batch, 2, Buffers(module), seeded)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not grads(module)


def test_buffers_come_back() -> None:
    norm = nn.BatchNorm1d(3)
    buffers = Buffers(norm)
    norm(torch.randn(8, 3))
    buffers.save()
    kept = {key: value.clone() for key, value in norm.named_buffers()}
    norm(torch.full((8, 3), float("nan")))
    buffers.restore()
    assert all(torch.equal(value, kept[key]) for key, value in norm.named_buffers())
    Buffers(nn.Linear(2, 2)).save()
