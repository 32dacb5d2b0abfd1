"""Boxes follow their pixels, and what is no box is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssl_toolkit.data.base import Objects
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.objects import check_objects, cropped, flipped_boxes, read_objects, resized
from ssl_toolkit.evaluation.detection.samples import RandomShortSide, SquareCrops
from tests.evaluation.detection.fakes import ObjectDataset, objects, squares


def bright(pixels: torch.Tensor) -> list[float]:
    """Corners of what is brighter than half in ``(C, H, W)``, sides counted by brightness."""
    light = pixels.float().mean(0) / 255
    rows, columns = light.max(1).values, light.max(0).values
    peak = float(light.max())
    y, x = (torch.nonzero(v > peak / 2).flatten() for v in (rows, columns))
    return [float(x[0]), float(y[0]), float(x[-1]) + 1, float(y[-1]) + 1]


def one_box(height: int, width: int, box: tuple[int, int, int, int]) -> ObjectDataset:
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return ObjectDataset([image], [objects([box], [1])])


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (37, 37)])
def test_boxes_follow_pixels_through_scale_crop_and_flip(shape: tuple[int, int]) -> None:
    data = one_box(*shape, (9, 12, 25, 30))
    samples = SquareCrops(data, [0], True, 0, 48, (0.6, 2.0), [0.0] * 3)
    seen = 0
    for epoch in range(40):
        pixels, found, _ = samples.example((epoch, 0))
        assert pixels.shape == (3, 48, 48)
        if len(found.labels):
            seen += 1
            assert np.abs(found.boxes[0] - np.array(bright(pixels))).max() <= 1.01
    assert seen > 20


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_whole_images_keep_their_ratio(shape: tuple[int, int]) -> None:
    data = one_box(*shape, (9, 12, 25, 30))
    samples = RandomShortSide(data, [0], True, 0, [30, 80], 110, False)
    shapes = set()
    for epoch in range(20):
        pixels, found, _ = samples.example((epoch, 0))
        shapes.add(min(pixels.shape[1:]))
        assert max(pixels.shape[1:]) <= 110
        assert np.abs(found.boxes[0] - np.array(bright(pixels))).max() <= 1.5
    assert shapes == {30, 73}  # 80 would make the longer side 120: 110 / 120 of it


def test_an_example_depends_on_its_key_alone() -> None:
    samples = SquareCrops(squares(6), [5, 3, 1], True, 4, 24, (0.5, 2.0), [0.0] * 3)
    together = samples.batch([(0, 2), (1, 0), (0, 1)])
    for key, (pixels, found, _) in zip([(0, 2), (1, 0), (0, 1)], together):
        alone, same, _ = samples.example(key)
        assert torch.equal(alone, pixels)
        assert np.array_equal(found.boxes, same.boxes)
    assert len(samples) == 3


def test_a_square_is_filled_with_the_mean() -> None:
    samples = SquareCrops(one_box(20, 20, (0, 0, 20, 20)), [0], False, 0, 40, (0.5, 0.5), [0.2, 0.4, 0.6])
    pixels, found, _ = samples.example((0, 0))
    assert found.boxes.tolist() == [[0, 0, 20, 20]]
    assert (pixels[:, :20, :20] == 255).all()
    assert pixels[:, 30, 30].tolist() == [51, 102, 153]


def test_crops_ignore_objects_whose_centre_is_outside() -> None:
    things = objects([[0, 0, 10, 10], [8, 8, 20, 20], [30, 30, 40, 40], [0, 0, 4, 4]], [0, 1, 2, 0], [0, 0, 0, 1])
    found = cropped(things, 3, 6, 12)
    assert found.boxes.tolist() == [[0, 0, 7, 4], [5, 2, 12, 12]]
    assert found.labels.tolist() == [0, 1]
    assert found.ignore.tolist() == [True, False]  # centres (2, -1) and (11, 8)


def test_flipped_boxes_in_closed_form() -> None:
    boxes = np.array([[1, 2, 5, 7]], np.float32)
    assert flipped_boxes(boxes, 12).tolist() == [[7, 2, 11, 7]]
    assert flipped_boxes(flipped_boxes(boxes, 12), 12).tolist() == boxes.tolist()


def test_resized_keeps_what_has_the_size_already() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    pixels, scale = resized(image, 20, 60)
    assert scale == (1, 1)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image)
    assert resized(image, 40, 30)[0].shape == (3, 20, 30)


@pytest.mark.parametrize("kept", [True, False])
def test_ignored_objects_are_trained_on_or_left_out(kept: bool) -> None:
    data = one_box(20, 20, (1, 1, 9, 9))
    data.things = [objects([[1, 1, 9, 9], [2, 2, 8, 8]], [0, 1], [True, False])]
    samples = RandomShortSide(data, [0], False, 0, [20], 40, kept)
    assert samples.example((0, 0)).objects.labels.tolist() == ([0, 1] if kept else [1])


NAN = float("nan")


@pytest.mark.parametrize(
    ("things", "words"),
    [
        (objects([[1, 1, 4, 4]], [3]), r"squares val: an object of image 2 has label 3, outside the 3 classes"),
        (objects([[1, 1, 4, 4]], [-1]), "has label -1, outside"),
        (objects([[4, 1, 4, 4]], [0]), r"has a box without area \(4 1 4 4\): correct or remove it"),
        (objects([[5, 1, 4, 4]], [0]), "without area"),
        (objects([[NAN, 1, 4, 4]], [0]), "without area"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_named(things: Objects, words: str) -> None:
    data = {"train": squares(4), "val": squares(4, "val")}
    data["val"].things = [*data["val"].things[:2], things, *data["val"].things[3:]]
    with pytest.raises(UserError, match=words):
        check_objects(data)


@pytest.mark.parametrize("things", [objects([], []), objects([[1, 1, 4, 4]], [0], [True])])
def test_a_split_without_objects(things: Objects) -> None:
    data = squares(3, "test")
    data.things = [things] * 3
    with pytest.raises(UserError, match="squares: its test split has no object to detect; use data that has some"):
        check_objects({"test": data})


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ([-3, -2, 5, 6], [0, 0, 5, 6]),
        ([10, 10, 99, 99], [10, 10, 30, 20]),
        ([40, 1, 50, 4], None),
        ([1, 20, 5, 30], None),
    ],
)
def test_boxes_that_leave_the_image(box: list[int], cut: list[int] | None) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    data: Any = ObjectDataset([image], [objects([box], [0])])
    if cut is not None:
        assert read_objects(data, 0, image).boxes.tolist() == [cut]
        return
    with pytest.raises(UserError, match="of image 0 lies outside the image, which is 30 wide and 20 high"):
        read_objects(data, 0, image)
