"""Extraction leaves the backbone as it was and gives what a plain forward pass gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Features
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import calibrate_batchnorm, eval_images, evaluating, extract
from tests.evaluation.fakes import CPU, PREPARATION, ArrayDataset, ColourBackbone, colour_blocks
from tests.helpers import TinyBackbone


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_features_labels_and_masks_in_the_order_of_the_images() -> None:
    dataset, backbone = colour_blocks(13), TinyBackbone().eval()
    bank = extract(backbone, dataset, PREPARATION, device=CPU, maps=True, masks=True)
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = backbone((images / 255 - 0.5) / 0.25)
    assert torch.allclose(bank.pooled, expected.pooled, atol=1e-5)
    assert torch.allclose(bank.maps, expected.maps, atol=1e-5)
    assert bank.labels.tolist() == dataset.targets
    assert torch.equal(bank.masks, torch.from_numpy(dataset.masks))
    assert bank.pooled.dtype == bank.maps.dtype == torch.float32
    assert bank.stages is None
    assert len(bank) == 13
    assert dataset.reads == 13


def test_what_was_not_asked_for_is_not_kept() -> None:
    bank = extract(ColourBackbone(), colour_blocks(4, labels=False), PREPARATION, device=CPU)
    assert bank.maps is None
    assert bank.masks is None
    assert bank.labels is None


class Pyramid(ColourBackbone):
    """Two levels, and how often it ran."""

    passes = 0

    def stages(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, 2), F.avg_pool2d(images, 4)]

    def forward_stages(self, images: Tensor) -> tuple[Features, list[Tensor]]:
        self.passes += 1
        return self(images), self.stages(images)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_stages_from_the_same_pass(precision: torch.dtype) -> None:
    dataset, backbone = colour_blocks(13), Pyramid()
    bank = extract(backbone, dataset, PREPARATION, device=CPU, precision=precision, maps=True, stages=True)
    images = (torch.from_numpy(dataset.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    assert [tuple(level.shape) for level in bank.stages] == [(13, 3, 8, 8), (13, 3, 4, 4)]
    assert torch.allclose(bank.stages[0], F.avg_pool2d(images, 2), atol=1e-5)
    assert torch.equal(bank.stages[1], bank.maps)
    assert backbone.passes == 1 + 3  # one to see the shapes


def test_features_can_train_a_head() -> None:
    bank = extract(ColourBackbone(), colour_blocks(4), PREPARATION, device=CPU, maps=True)
    weight = torch.zeros(3, 2, requires_grad=True)
    (bank.pooled @ weight).sum().backward()  # a tensor made in inference mode could not be saved for this
    assert not bank.maps.is_inference()


def test_batchnorm_statistics_and_modes_are_as_before() -> None:
    backbone = TinyBackbone()
    backbone.train()
    backbone.net[2].eval()  # a part that someone froze
    before, modes = state(backbone), [m.training for m in backbone.modules()]
    extract(backbone, colour_blocks(9), PREPARATION, device=CPU)
    assert [m.training for m in backbone.modules()] == modes
    after = state(backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_modes_come_back_after_an_error() -> None:
    backbone = TinyBackbone()
    modes: list[bool] = []

    def fail() -> None:
        with evaluating(backbone):
            modes.extend(m.training for m in backbone.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not any(modes)
    assert all(m.training for m in backbone.modules())


def test_bf16_keeps_maps_in_bf16_and_pooled_in_float32() -> None:
    dataset, backbone = colour_blocks(6), TinyBackbone().eval()
    exact = extract(backbone, dataset, PREPARATION, device=CPU, maps=True)
    half = extract(backbone, dataset, PREPARATION, device=CPU, precision=torch.bfloat16, maps=True)
    assert half.maps.dtype == torch.bfloat16
    assert half.pooled.dtype == torch.float32
    assert torch.allclose(half.pooled, exact.pooled, atol=0.05)
    assert not torch.equal(half.pooled, exact.pooled)


class Formats(ColourBackbone):
    """Notes the memory format of its input."""

    def forward(self, images: Tensor) -> Features:
        self.channels_last = images.is_contiguous(memory_format=torch.channels_last)
        return super().forward(images)


def test_images_are_channels_last() -> None:
    backbone = Formats()
    extract(backbone, colour_blocks(4), PREPARATION, device=CPU)
    assert backbone.channels_last


def test_worker_processes_give_the_same_and_one_line_errors() -> None:
    dataset = colour_blocks(12)
    workers = dataclasses.replace(PREPARATION, workers=1)
    here = extract(ColourBackbone(), dataset, PREPARATION, device=CPU, masks=True)
    there = extract(ColourBackbone(), dataset, workers, device=CPU, masks=True)
    assert torch.equal(here.pooled, there.pooled)
    assert torch.equal(here.masks, there.masks)
    dataset.masks[7, 0, 0] = 77
    with pytest.raises(UserError, match="the mask of image 7 holds 77") as caught:
        extract(ColourBackbone(), dataset, workers, device=CPU, masks=True)
    assert "\n" not in str(caught.value)


def broken(**changes: object) -> ArrayDataset:
    dataset = colour_blocks(6)
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (broken(targets=[0, 1, 2, 3, 0, 0]), "arrays train: image 3 has label 3, outside the 3 classes"),
        (broken(targets=[0, -1, 2, 0, 0, 0]), "image 1 has label -1"),
        (broken(masks=np.zeros((6, 8, 16), np.uint8)), r"mask of image 0 is \(8, 16\), its image is \(16, 16\)"),
        (broken(masks=np.full((6, 16, 16), 3, np.uint8)), "mask of image 0 holds 3: outside the 3 classes"),
        (broken(images=np.zeros((0, 16, 16, 3), np.uint8), targets=[]), "train split has no images"),
    ],
)
def test_bad_data_is_one_line(dataset: ArrayDataset, words: str) -> None:
    with pytest.raises(UserError, match=words):
        extract(ColourBackbone(), dataset, PREPARATION, device=CPU, masks=True)


def test_void_pixels_are_no_error() -> None:
    dataset = broken(masks=np.full((6, 16, 16), 255, np.uint8))
    assert (extract(ColourBackbone(), dataset, PREPARATION, device=CPU, masks=True).masks == 255).all()


def test_features_that_are_not_finite_are_an_error() -> None:
    backbone = TinyBackbone().eval()
    backbone.net[0].weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="nan or infinity for 4 of 4 images of arrays train"):
        extract(backbone, colour_blocks(4), PREPARATION, device=CPU)


def test_calibration_is_the_average_of_batch_statistics() -> None:
    dataset, backbone = colour_blocks(20), TinyBackbone()
    conv, norm = backbone.net[0], backbone.net[1]
    norm.running_mean.fill_(9)  # is replaced, not blended in
    norm.num_batches_tracked.fill_(3)
    backbone.eval()
    assert calibrate_batchnorm(backbone, dataset, PREPARATION, device=CPU, images=10, seed=4) == 1
    order = np.random.default_rng(4).permutation(20)[:10]
    means, variances = [], []
    for rows in (order[:5], order[5:]):
        images = torch.from_numpy(dataset.images[rows]).permute(0, 3, 1, 2)
        out = conv((images / 255 - 0.5) / 0.25).detach().transpose(0, 1).flatten(1).double()
        means.append(out.mean(1))
        variances.append(out.var(1))
    assert torch.allclose(norm.running_mean.double(), torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var.double(), torch.stack(variances).mean(0), rtol=1e-4)
    assert norm.momentum == 0.1
    assert not any(m.training for m in backbone.modules())


def test_calibration_without_batchnorm_or_with_one_image() -> None:
    assert calibrate_batchnorm(ColourBackbone(), colour_blocks(4), PREPARATION, device=CPU) == 0
    with pytest.raises(UserError, match="2 images or more"):
        calibrate_batchnorm(TinyBackbone(), colour_blocks(1), PREPARATION, device=CPU)


def test_eval_images_are_what_the_backbone_sees() -> None:
    dataset = colour_blocks(5)
    assert np.array_equal(eval_images(dataset, [3, 1], PREPARATION).numpy(), dataset.images[[3, 1]])
