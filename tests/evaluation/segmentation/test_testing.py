"""Predictions by windows and at the size of the mask against plain loops; counts of every image once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix
from torch import Tensor

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.data.base import VOID, ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.segmentation.augmented import total_stride
from ssl_toolkit.evaluation.segmentation.networks import LinearHeads, Segmenter
from ssl_toolkit.evaluation.segmentation.testing import TestSpec, evaluate_split, image_logits, predicted, window_starts
from tests.evaluation.fakes import COLOURS, CPU, ArrayDataset

SPEC = TestSpec((64, 32), False, (12, 16), (4, 4), lambda images: images.float() / 255)


def network(images: Tensor) -> Tensor:
    """Two heads of three classes on cells of 4 pixels; a cell depends on its whole window."""
    cells = F.avg_pool2d(images, 4) - images.mean((2, 3), keepdim=True)
    return torch.stack([cells, cells.roll(1, 1) * 2], 1).permute(2, 1, 0, 3, 4)


def plain(images: Tensor, head: int) -> Tensor:
    """The same by interpolation, at the size of ``images``."""
    return F.interpolate(network(images)[:, head].transpose(0, 1), size=images.shape[2:], mode="bilinear")


@pytest.mark.parametrize(("length", "window", "expected"), [
    (512, 512, [0]),
    (300, 512, [0]),
    (683, 512, [0, 171]),
    (2048, 512, [0, 341, 682, 1023, 1364, 1536]),
    (853, 512, [0, 341]),
    (3, 1, [0, 1, 2]),
])  # fmt: skip
def test_windows_are_two_thirds_apart_and_end_with_the_image(length: int, window: int, expected: list[int]) -> None:
    assert window_starts(length, window) == expected
    assert all(any(s <= i < s + window for s in expected) for i in range(length))


def test_a_whole_image_is_padded_to_cells_and_cut_again() -> None:
    images = torch.rand(2, 3, 10, 13)
    padded = torch.zeros(2, 3, 12, 16)
    padded[:, :, :10, :13] = images
    got = image_logits(network, images, SPEC)
    assert got.shape == (3, 2, 2, 10, 13)
    for head in range(2):
        expected = plain(padded, head)[:, :, :10, :13]
        assert torch.allclose(got[:, head].transpose(0, 1), expected, atol=1e-5)


def test_windows_are_averaged_where_they_overlap() -> None:
    images = torch.rand(1, 3, 28, 40)
    got = image_logits(network, images, dataclasses.replace(SPEC, slide=True))
    total, times = torch.zeros(3, 28, 40), torch.zeros(28, 40)
    for top in (0, 8, 16):
        for left in (0, 10, 20, 24):
            total[:, top : top + 12, left : left + 16] += plain(images[:, :, top : top + 12, left : left + 16], 1)[0]
            times[top : top + 12, left : left + 16] += 1
    assert times.min() == 1
    assert times.max() == 6
    assert torch.allclose(got[:, 1, 0], total / times, atol=1e-5)


def test_predictions_have_the_size_of_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    images = (torch.rand(3, 3, 12, 16) * 255).to(torch.uint8)
    got = predicted(network, images, 31, 50, SPEC)
    assert got.shape == (2, 3, 31, 50)
    for head in range(2):
        expected = F.interpolate(plain(images / 255, head), size=(31, 50), mode="bilinear").argmax(1)
        assert (got[head] == expected).float().mean() > 0.999  # ties in rounding
    monkeypatch.setattr("ssl_toolkit.evaluation.segmentation.testing.LOGITS", {"cpu": 1, "other": 1})
    assert torch.equal(predicted(network, images, 31, 50, SPEC), got)


class Sizes(ArrayDataset):
    """Images of three sizes whose masks are their colours at some pixels and void at others."""

    def __init__(self, count: int = 7) -> None:
        rng = np.random.default_rng(0)
        sizes = [((24, 32), (32, 24), (20, 48))[i % 3] for i in range(count)]
        masks = [rng.integers(0, 3, size).astype(np.uint8) for size in sizes]
        super().__init__(np.zeros((count, 1, 1, 3), np.uint8), None, np.zeros((count, 1, 1), np.uint8), "test")
        self.pictures = [COLOURS[mask] for mask in masks]
        for mask in masks:
            mask[rng.random(mask.shape) < 0.2] = VOID
        self.truth = masks

    def image(self, index: int) -> np.ndarray:
        self.reads += 1
        return self.pictures[index]

    def mask(self, index: int) -> np.ndarray:
        return self.truth[index]


def evaluated(data: ImageDataset, workers: int = 0, batch_size: int = 3) -> Tensor:
    return evaluate_split(network, 2, data, SPEC, batch_size=batch_size, workers=workers, device=CPU, title="testing")


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 4), (1, 3)])
def test_the_confusion_of_a_split_is_that_of_its_images(workers: int, batch_size: int) -> None:
    data = Sizes()
    got = evaluated(data, workers, batch_size)
    assert got.dtype == torch.int64
    expected = np.zeros((2, 3, 3), np.int64)
    for index in range(len(data)):
        image = torch.from_numpy(data.pictures[index]).permute(2, 0, 1)[None]
        height, width = data.truth[index].shape
        factor = min(64 / max(height, width), 32 / min(height, width))
        size = (round(height * factor), round(width * factor))
        large = F.interpolate(image.float(), size=size, mode="bilinear").round().to(torch.uint8)
        prediction = predicted(network, large, height, width, SPEC)[:, 0]
        scored = data.truth[index] != VOID
        for head in range(2):
            found = confusion_matrix(data.truth[index][scored], prediction[head].numpy()[scored], labels=range(3))
            expected[head] += found
    assert got.sum() == expected.sum()
    assert np.abs(got.numpy() - expected).sum() <= 0.01 * expected.sum()  # OpenCV and torch round differently
    assert torch.equal(got, evaluated(data))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_mask_is_one_line(workers: int) -> None:
    data = Sizes()
    data.truth[4] = data.truth[4][:-1]
    with pytest.raises(UserError, match="the mask of image 4 is"):
        evaluated(data, workers)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vicregl_convnext_mini", "resnet18"])
@pytest.mark.parametrize("slide", [False, True])
def test_real_backbones_take_images_of_any_size(name: str, slide: bool) -> None:
    backbone = create_backbone(name)
    stages = backbone.norm == "layer"
    channels = backbone.stage_channels if stages else (backbone.num_features,)
    heads = LinearHeads(2, channels, 3, True, 0.0)
    segmenter = Segmenter(backbone, heads, stages, True, torch.float32).eval()
    stride = total_stride(backbone, (64, 64))
    assert stride == ((32, 32) if name == "resnet18" else (16, 16))
    spec = TestSpec((90, 50), slide, (64, 64), stride, lambda images: images.float() / 255)
    images = torch.zeros(1, 3, 50, 77, dtype=torch.uint8)
    assert predicted(segmenter, images, 33, 51, spec).shape == (2, 1, 33, 51)
