"""Ranks against singular value decompositions, alignment and uniformity against all pairs, closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import SpectrumConfig
from ssl_toolkit.evaluation import spectrum as module
from ssl_toolkit.evaluation.spectrum import Layer, Spectrum, alignment, rankme, singular_values, uniformity
from ssl_toolkit.evaluation.view_pairs import PairViews
from ssl_toolkit.registry import typed
from tests.evaluation.test_local_matching import Constant, Waves, live_data, ramps


class Staged(Waves):
    """Two stages: a random projection of 8x8 patches with a dead channel, and `Waves`."""

    def __init__(self) -> None:
        super().__init__()
        self.stage_channels = (6, 4)
        self.weight = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.weight[2] = 0

    def stages(self, images: Tensor) -> list[Tensor]:
        return [F.conv2d(images, self.weight, stride=8), self(images).maps]


def random_rows(count: int, dimension: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))


def entropy_rank(x: Tensor) -> float:
    """RankMe by singular value decomposition."""
    share = torch.linalg.svdvals(x.double())
    share = share / share.sum()
    return math.exp(-sum(p * math.log(p) for p in share.tolist() if p > 0))


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (20, 20)])
def test_rankme_equals_svd_of_either_shape(shape: tuple[int, int]) -> None:
    x = random_rows(*shape) @ torch.diag(torch.logspace(0, -3, shape[1]))
    assert rankme(singular_values(x.double() @ x.double().T)) == pytest.approx(entropy_rank(x), rel=1e-6)
    layer = Layer("x")
    for part in torch.split(x, 7):
        layer.add(part)
    found = layer.report()
    assert found["rankme"] == pytest.approx(entropy_rank(x), rel=1e-6)
    assert found["effective_rank"] == pytest.approx(100 * entropy_rank(x) / shape[1], rel=1e-6)
    assert (found["vectors"], found["dimension"]) == shape


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_features_of_rank_r_have_rankme_r(rank: int) -> None:
    x = torch.linalg.qr(random_rows(40, rank).double()).Q @ torch.linalg.qr(random_rows(30, rank, 1).double()).Q.T
    layer = Layer("x")
    layer.add(x)
    found = layer.report()
    assert found["rankme"] == pytest.approx(rank, rel=1e-9)
    assert found["condition"] is None  # of 30 dimensions most are not used


def test_condition_number_and_dead_channels() -> None:
    x = random_rows(60, 5)
    layer = Layer("x")
    layer.add(x)
    assert layer.report()["condition"] == pytest.approx(float(torch.linalg.cond(x.double())), rel=1e-9)
    assert layer.report()["dead"] == 0
    x[:, 1], x[:, 3], x[:, 4] = 0, 700 + 1e-4 * x[:, 3], 1e-9 * x[:, 4]  # dead, dead but for rounding, small but alive
    layer = Layer("x")
    for part in torch.split(x, 9):
        layer.add(part)
    assert layer.report()["dead"] == 40


def test_all_zero_features_have_rank_zero() -> None:
    layer = Layer("x")
    layer.add(torch.zeros(5, 3))
    found = layer.report()
    assert (found["rankme"], found["dead"], found["condition"]) == (0, 100, None)


def test_alignment_in_closed_form() -> None:
    x = torch.eye(4)
    assert alignment(x, 3 * x).tolist() == [0] * 4
    assert torch.allclose(alignment(x, -x), torch.full((4,), 4.0).double())
    assert torch.allclose(alignment(x, x.roll(1, 0)), torch.full((4,), 2.0).double())


@pytest.mark.parametrize("numbers", [2**24, 50])
def test_uniformity_equals_all_pairs(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUMBERS", numbers)  # strips of one row
    x = random_rows(37, 5)
    pairs = torch.pdist(F.normalize(x.double(), dim=1))
    assert uniformity(x) == pytest.approx(math.log(pairs.square().mul(-2).exp().mean()), rel=1e-9)
    assert uniformity(torch.tensor([[1.0, 0], [-5, 0]])) == pytest.approx(-8)
    assert uniformity(torch.ones(9, 3)) == pytest.approx(0)


VIEWS = PairViews(scale=[0.3, 1.0])
QUICK = SpectrumConfig(images=45, pairs=40, cells=100, views=VIEWS)


def test_layers_of_a_backbone() -> None:
    backbone, dataset = Staged(), ramps(50)
    dataset.images += torch.randn(dataset.images.shape, generator=torch.Generator().manual_seed(1)).numpy()
    data = live_data(backbone, dataset)
    outcome = Spectrum(QUICK).run(data)
    index = [round(i * 49 / 44) for i in range(45)]
    images = torch.from_numpy(data.images("test", index).numpy()).permute(0, 3, 1, 2).float()
    given = (images / 255 - 0.5) / 0.25
    first, last = backbone.stages(given)
    expected = {
        "stage 1, pooled": first.mean((2, 3)),
        "stage 2, pooled": last.mean((2, 3)),
        "cells of the last map": last.flatten(2).mT.flatten(0, 1),
        "pooled": backbone(given).pooled,
    }
    assert [layer["layer"] for layer in outcome.details["layers"]] == list(expected)
    for layer, x in zip(outcome.details["layers"], expected.values()):
        assert (layer["vectors"], layer["dimension"]) == x.shape
        assert layer["rankme"] == pytest.approx(entropy_rank(x), rel=1e-3)
    assert outcome.details["layers"][0]["dead"] == pytest.approx(100 / 6)
    assert outcome.metrics["rankme"] == outcome.details["layers"][3]["rankme"]
    assert outcome.metrics["effective_rank"] == pytest.approx(25 * outcome.metrics["rankme"])
    assert outcome.details["cells"]["vectors"] > 300
    assert 90 <= outcome.details["cells"]["sampled"] <= 100


class Numbered(Staged):
    """Says which image it is (its blue channel) and where: views of an image differ only where places do."""

    def forward(self, images: Tensor) -> Features:
        number = F.avg_pool2d(images[:, 2:], 4)
        maps = torch.cat((number.cos(), number.sin(), super().forward(images).maps), 1)
        return Features(maps, maps[:, :2].mean((2, 3)))


def test_two_views_of_an_image_are_aligned_where_features_say_which() -> None:
    plain = dataclasses.replace(VIEWS, jitter=0.0, gray=0.0, blur=[0.0], solarize=[0.0])
    backbone, data = Numbered(), live_data(Numbered(), ramps(250))
    found = Spectrum(dataclasses.replace(QUICK, pairs=250, views=plain)).run(data).details
    assert found["pooled"]["alignment"] == pytest.approx(0, abs=1e-6)
    assert found["cells"]["alignment"] < 0.05  # matched cells are half a cell apart at most
    angle = (torch.arange(250) / 255 - 0.5) / 0.25
    expected = uniformity(torch.stack((angle.cos(), angle.sin()), 1))
    assert found["pooled"]["uniformity"] == pytest.approx(expected, abs=0.01)
    coloured = Spectrum(dataclasses.replace(QUICK, pairs=250)).run(data).details
    assert coloured["pooled"]["alignment"] > 0.1
    assert backbone.num_features == 4


class Same(Constant):
    """Two stages of one vector."""

    def stages(self, images: Tensor) -> list[Tensor]:
        return [self(images).maps]


def test_a_constant_backbone_has_rank_one() -> None:
    outcome = Spectrum(QUICK).run(live_data(Same(), ramps(40)))
    assert outcome.metrics["rankme"] == pytest.approx(1)
    assert outcome.metrics["dead"] == 100
    assert outcome.metrics["alignment"] == pytest.approx(0, abs=1e-9)
    assert outcome.metrics["uniformity"] == pytest.approx(0, abs=1e-9)
    assert outcome.details["cells"]["uniformity"] == pytest.approx(0, abs=1e-9)


def test_fewer_images_than_dimensions_are_noted() -> None:
    outcome = Spectrum(dataclasses.replace(QUICK, images=3)).run(live_data(Staged(), ramps(40)))
    assert "3 images cannot fill 4 dimensions" in outcome.notes
    many = Spectrum(QUICK).run(live_data(Staged(), ramps(40)))
    assert not any("cannot fill" in note for note in many.notes)


def test_the_seed_draws_the_views_and_batches_do_not_matter() -> None:
    options = dataclasses.replace(QUICK, cells=50)
    one, again = (Spectrum(options).run(live_data(Staged(), ramps(40), *how)) for how in ((5, 0), (64, 1)))
    other = Spectrum(dataclasses.replace(options, seed=1)).run(live_data(Staged(), ramps(40)))
    assert one.details == again.details
    assert one.details["layers"] == other.details["layers"]
    assert one.details["cells"] != other.details["cells"]


def test_one_test_image_is_too_few() -> None:
    data = live_data(Staged(), ramps(1))
    with pytest.raises(UserError, match="spectrum needs 2 test images or more"):
        Spectrum(QUICK).check(data.source, data.datasets)


@pytest.mark.parametrize("options", [{"images": 1}, {"pairs": 1}, {"cells": 0}, {"seed": -1}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(UserError, match="images, pairs and cells must be 2 or more"):
        typed(SpectrumConfig, options, "spectrum")


def test_a_backbone_is_left_as_it_was() -> None:
    backbone: Backbone = Staged()
    assert backbone.config == BackboneConfig(name="waves-test")
    backbone.train()
    Spectrum(QUICK).run(live_data(backbone, ramps(40)))
    assert backbone.training
