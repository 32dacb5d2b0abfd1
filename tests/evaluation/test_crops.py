"""Random crops of labelled images: the right pixels with the right labels, by key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Preparation
from ssl_toolkit.evaluation.crops import CropConfig, LabelledCrops
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled
from ssl_toolkit.registry import typed
from tests.evaluation.fakes import ArrayDataset


def gradients(count: int = 6, height: int = 20, width: int = 30) -> ArrayDataset:
    """Red is the row, green the column, blue the image."""
    y, x = np.mgrid[:height, :width]
    images = np.stack([np.stack([y, x, np.full_like(y, 40 * i)], -1) for i in range(count)]).astype(np.uint8)
    return ArrayDataset(images, [i % 3 for i in range(count)])


def crops(dataset: ArrayDataset, crop: CropConfig, resize: int = 16, size: int = 16, **labels: int) -> LabelledCrops:
    chosen = labelled(LabelsConfig(**labels), dataset)  # type: ignore[arg-type]
    return LabelledCrops(dataset, chosen, crop, Preparation([0.5] * 3, [0.5] * 3, resize, size), seed=5)


def test_a_batch_is_by_key_and_of_the_chosen_images() -> None:
    dataset = gradients(9)
    samples = crops(dataset, CropConfig(), shots=1)
    assert len(samples) == 3
    images, labels = samples.batch([(0, 2), (4, 0), (0, 1)])
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    rows = [int(samples.rows[i]) for i in (2, 0, 1)]
    assert [int(v) for v in images[:, 2].float().mean((1, 2)) / 40 + 0.5] == rows
    assert labels.tolist() == [dataset.targets[row] for row in rows]
    again, _ = samples.batch([(4, 0)])
    assert torch.equal(again[0], images[1])
    other, _ = samples.batch([(5, 0)])
    assert not torch.equal(other[0], images[1])


def test_colours_stay_and_crops_are_of_the_scale() -> None:
    samples = crops(gradients(), CropConfig(scale=[0.25, 0.25], flip=0.0))
    images, _ = samples.batch([(n, 1) for n in range(200)])
    assert (images[:, 2] == 40).all()
    spans = images.amax((2, 3)).float() - images.amin((2, 3)).float()
    area = (spans[:, 0] + 1) * (spans[:, 1] + 1) / (20 * 30)
    assert area.mean() == pytest.approx(0.25, abs=0.05)


def test_mirroring() -> None:
    for flip in (0.0, 1.0):
        images, _ = crops(gradients(), CropConfig(flip=flip)).batch([(n, 0) for n in range(20)])
        rising = images[:, 1, :, -1].float().mean(1) > images[:, 1, :, 0].float().mean(1)
        assert bool(rising.all()) == (flip == 0.0)
        assert bool(rising.any()) == (flip == 0.0)


def test_random_windows_are_pixels_of_the_image_everywhere_in_it() -> None:
    """With resize equal to the shorter side nothing is resized: each crop is a slice."""
    dataset = gradients(1)
    samples = crops(dataset, CropConfig(kind="random", flip=0.0), resize=20, size=12)
    images, _ = samples.batch([(n, 0) for n in range(400)])
    top, left = images[:, 0, 0, 0], images[:, 1, 0, 0]
    for image, y, x in zip(images, top.tolist(), left.tolist()):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), dataset.images[0, y : y + 12, x : x + 12])
    assert set(top.tolist()) == set(range(9))
    assert set(left.tolist()) == set(range(19))


def test_random_windows_scale_with_the_image() -> None:
    samples = crops(gradients(), CropConfig(kind="random", flip=0.0), resize=40, size=20)
    images, _ = samples.batch([(0, 0)])
    spans = images.amax((2, 3)).int() - images.amin((2, 3)).int()
    assert images.shape[-1] == 20
    assert spans[0, :2].tolist() == pytest.approx([9, 9], abs=1)  # a window of 10 pixels, at twice its size


def test_an_image_that_cannot_be_read_is_named() -> None:
    dataset = gradients()

    class Broken(ArrayDataset):
        def image(self, index: int) -> np.ndarray:
            if index == 4:
                raise UserError("picture 4 is cut off")
            return super().image(index)

    broken = Broken(dataset.images, dataset.targets)
    with pytest.raises(UserError, match="picture 4 is cut off"):
        crops(broken, CropConfig()).batch([(0, 1), (0, 4)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "centre"}, "unknown crop.kind 'centre'"),
        ({"scale": [0.5]}, "scale must be two positive numbers"),
        ({"flip": 2.0}, "flip is a probability"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(CropConfig, options, "finetune.crop")
