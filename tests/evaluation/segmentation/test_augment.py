"""Crops of an image and its mask: the same place in both, with the sizes, shares and strengths that are asked for."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_toolkit.data.base import VOID
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.segmentation.augment import (
    CropSpec,
    MaskedCrops,
    crop_corner,
    distort,
    fitted,
    random_crop,
    read_masked,
)
from tests.evaluation.fakes import COLOURS, ArrayDataset, colour_blocks

FILL = (7.0, 9.0, 11.0)
PLAIN = CropSpec((32, 24), (1.0, 1.0), (16, 16), 1.0, False, False, FILL)


def changed(**values: Any) -> CropSpec:
    return dataclasses.replace(PLAIN, **values)


def scene(height: int, width: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Blocks of 6 pixels in three colours; the mask is the colour, the image says so."""
    blocks = np.random.default_rng(seed).integers(0, 3, (height // 6 + 1, width // 6 + 1)).astype(np.uint8)
    mask = np.ascontiguousarray(blocks.repeat(6, 0).repeat(6, 1)[:height, :width])
    return COLOURS[mask], mask


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),
        ((500, 375), (2048, 512), (683, 512)),
        ((1024, 2048), (2048, 1024), (1024, 2048)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the longer side decides
        ((375, 500), (1024.0, 256.0), (256, 341)),
        ((1, 4000), (100, 50), (1, 100)),
    ],
)
def test_images_fit_the_box(size: tuple[int, int], resize: tuple[float, float], expected: tuple[int, int]) -> None:
    assert fitted(*size, resize) == expected


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_stay_aligned(seed: int) -> None:
    image, mask = scene(40, 52, seed)
    spec = changed(resize=(52, 40), scale=(0.5, 2.0), crop=(36, 44), flip=True)
    crop, truth = random_crop(image, mask, spec, rng(seed))
    assert crop.shape == (36, 44, 3)
    assert truth.shape == (36, 44)
    assert crop.dtype == truth.dtype == np.uint8
    inside = truth != VOID
    assert (crop[~inside] == np.array(FILL)).all()
    colour = np.abs(crop[:, :, None].astype(int) - COLOURS.astype(int)).sum(-1).argmin(-1)
    kernel = np.ones((3, 3), np.uint8)
    even = cv2.erode(truth, kernel) == cv2.dilate(truth, kernel)  # bilinear pixels mix where classes meet
    assert (even & inside).mean() > 0.1
    assert (colour == truth)[even & inside].all()
    assert (colour == truth)[inside].mean() > 0.9


def test_without_scale_and_flip_a_crop_is_a_window_of_the_image() -> None:
    generator = rng()
    image = generator.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    mask = generator.integers(0, 3, (24, 32)).astype(np.uint8)
    corners = set()
    for seed in range(60):
        crop, truth = random_crop(image, mask, PLAIN, rng(seed))
        found = [
            (y, x)
            for y in range(9)
            for x in range(17)
            if np.array_equal(image[y : y + 16, x : x + 16], crop)
            and np.array_equal(mask[y : y + 16, x : x + 16], truth)
        ]
        assert len(found) == 1
        corners.update(found)
    assert len(corners) > 40
    assert {y for y, _ in corners} == set(range(9))


def test_what_is_outside_the_image_is_void_and_filled() -> None:
    image, mask = scene(12, 20)
    crop, truth = random_crop(image, mask, changed(resize=(20, 12), crop=(16, 24)), rng())
    assert np.array_equal(crop[:12, :20], image)
    assert np.array_equal(truth[:12, :20], mask)
    assert (truth == VOID).sum() == 16 * 24 - 12 * 20
    assert (crop[12:] == FILL).all()
    assert (crop[:, 20:] == FILL).all()
    deep = random_crop(
        image.astype(np.float32), mask, changed(resize=(20, 12), fill=(0.5, 1.5, 2.5), crop=(16, 24)), rng()
    )
    assert deep[0].dtype == np.float32
    assert (deep[0][12:] == (0.5, 1.5, 2.5)).all()


def test_scales_are_uniform() -> None:
    image, mask = scene(100, 100)
    spec = changed(resize=(100, 100), scale=(0.5, 2.0), crop=(220, 220))
    sides = [(random_crop(image, mask, spec, rng(seed))[1][0] != VOID).sum() for seed in range(400)]
    assert min(sides) >= 50
    assert max(sides) <= 200
    counts, _ = np.histogram(sides, bins=6, range=(50, 200))
    assert (np.abs(counts - 400 / 6) < 4.5 * np.sqrt(400 / 6)).all()


def test_half_of_the_crops_are_mirrored_or_none() -> None:
    image, mask = scene(24, 32)
    spec = changed(crop=(24, 32))
    for flip, share in ((True, 0.5), (False, 0.0)):
        crops = [random_crop(image, mask, dataclasses.replace(spec, flip=flip), rng(seed)) for seed in range(200)]
        mirrored = [np.array_equal(crop, image[:, ::-1]) for crop, _ in crops]
        assert all(np.array_equal(crop, image) or m for (crop, _), m in zip(crops, mirrored))
        assert all(np.array_equal(truth, mask[:, ::-1] if m else mask) for (_, truth), m in zip(crops, mirrored))
        assert abs(np.mean(mirrored) - share) < 0.15


def test_crops_of_one_class_are_drawn_again() -> None:
    mask = np.zeros((24, 40), np.uint8)
    mask[:, 30:] = 1  # a crop of 16 pixels is at most 12/16 of class 0 where it starts at column 18 or later
    mask[0] = VOID  # does not count
    spec = changed(cat_max_ratio=0.76)
    tries = np.array([crop_corner(mask, spec, rng(seed))[1] for seed in range(500)])
    for start in np.unique(tries):
        part = mask[4:20, start : start + 16]
        assert (start >= 18) == ((part == 0).mean() < 0.76)
    chance = 7 / 25  # columns 18 to 24 of 0 to 24
    expected = 1 - (1 - chance) ** 10
    assert abs((tries >= 18).mean() - expected) < 0.05
    anything = np.array([crop_corner(mask, PLAIN, rng(seed))[1] for seed in range(500)])
    assert abs((anything >= 18).mean() - chance) < 0.08
    void = np.full((24, 40), VOID, np.uint8)
    assert crop_corner(void, spec, rng())[1] in range(25)


def test_distortion_of_grey_is_brightness_and_contrast() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    values = np.array([int(distort(grey, rng(seed))[0, 0, 0]) for seed in range(3000)])
    # Untouched with probability 1/4; brightness 68 to 132, times 0.5 to 1.5.
    assert abs((values == 100).mean() - 0.25) < 0.04
    assert values.min() >= 34 - 1
    assert values.max() <= 198
    assert values.min() < 40
    assert values.max() > 185
    assert abs(values.mean() - 100) < 3


def test_distortion_turns_hue_and_saturation_within_bounds() -> None:
    pixel = np.array([[[200, 120, 80]]], np.uint8)
    hue, saturation, _ = colorsys.rgb_to_hsv(*(pixel[0, 0] / 255))
    turns, factors = [], []
    for seed in range(2000):
        found = colorsys.rgb_to_hsv(*(distort(pixel.astype(np.float32), rng(seed))[0, 0] / 255.0))
        if found[2] < 0.99:  # nothing was clipped
            turns.append(((found[0] - hue) * 360 + 180) % 360 - 180)
            factors.append(found[1] / saturation)
    # Brightness is added before, which changes saturation a little and hue not at all.
    assert max(np.abs(turns)) <= 36.5
    assert max(turns) > 30
    assert min(turns) < -30
    assert abs((np.abs(turns) < 0.5).mean() - 0.5) < 0.06
    assert min(factors) < 0.6
    assert 1.3 < max(factors) <= 1.7 * 1.5


def test_distortion_of_bytes_is_that_of_floats() -> None:
    image = rng(1).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    apart = []
    for seed in range(60):
        exact = distort(image.astype(np.float32), rng(seed))
        coarse = distort(image, rng(seed))
        assert coarse.dtype == np.uint8
        assert exact.min() >= 0
        assert exact.max() <= 255
        apart.append(np.abs(exact - coarse).mean())
    assert max(apart) < 4  # OpenCV's 8-bit hue has steps of 2 degrees


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_images_than_colour_are_distorted_too(channels: int) -> None:
    image = rng(1).integers(40, 200, (24, 32, channels)).astype(np.uint8)
    spec = changed(photometric=True, fill=(0.0,) * channels, scale=(0.7, 1.3), flip=True)
    results = [random_crop(image, image[..., 0] % 3, spec, rng(seed))[0] for seed in range(4)]
    assert all(result.shape == (16, 16, channels) for result in results)


def test_a_crop_depends_on_its_key_and_the_seed_alone() -> None:
    data = colour_blocks(6)
    spec = changed(resize=(16, 16), scale=(0.5, 2.0), photometric=True, flip=True)
    samples = MaskedCrops(data, spec, seed=3)
    assert len(samples) == 6
    keys = [(0, 2), (1, 2), (0, 5), (4, 0)]
    together = samples.batch(keys)
    assert together.images.shape == (4, 3, 16, 16)
    assert together.masks.shape == (4, 16, 16)
    for i, key in enumerate(keys):
        alone = samples.batch([key])
        assert all(np.array_equal(part[0], whole[i]) for part, whole in zip(alone, together))
    assert not np.array_equal(together.images[0], together.images[1])
    assert len(set(together.seeds.tolist())) == 4
    other = MaskedCrops(data, spec, seed=4).batch(keys)
    assert not np.array_equal(other.images, together.images)


def test_bad_masks_are_one_line() -> None:
    image, mask = scene(16, 16)
    small = ArrayDataset(image[None], None, mask[None, :12], "val")
    with pytest.raises(UserError, match=r"arrays val: the mask of image 0 is \(12, 16\), its image is \(16, 16\)"):
        read_masked(small, 0)
    strange = mask.copy()
    strange[3, 3] = 9
    with pytest.raises(UserError, match=r"the mask of image 0 holds 9: outside the 3 classes and not void \(255\)"):
        read_masked(ArrayDataset(image[None], None, strange[None]), 0)
