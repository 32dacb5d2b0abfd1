"""Each operation against PIL, with the tolerance it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from ssl_toolkit.views import photometric as ops


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(load_sample_image("china.jpg")[100:228, 200:360])


def difference(ours: np.ndarray, theirs: Image.Image) -> tuple[float, int]:
    gap = np.abs(ours.astype(int) - np.asarray(theirs).astype(int).reshape(ours.shape))
    return float(gap.mean()), int(gap.max())


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_brightness_contrast_saturation(photo: np.ndarray, factor: float) -> None:
    image = Image.fromarray(photo)
    assert difference(ops.brightness(photo, factor), ImageEnhance.Brightness(image).enhance(factor))[1] <= 1
    assert difference(ops.contrast(photo, factor), ImageEnhance.Contrast(image).enhance(factor))[1] <= 1
    mean, largest = difference(ops.saturation(photo, factor), ImageEnhance.Color(image).enhance(factor))
    assert mean < 0.6
    assert largest <= 2


@pytest.mark.parametrize("turns", [-0.3, 0.0, 0.1, 0.5])
def test_hue(photo: np.ndarray, turns: float) -> None:
    hsv = np.array(Image.fromarray(photo).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + int(turns * 255)) % 256
    mean, largest = difference(ops.hue(photo, turns), Image.fromarray(hsv, "HSV").convert("RGB"))
    assert mean < 1.2
    assert largest <= 20


def test_gray_and_solarize(photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    assert difference(ops.grayscale(photo), image.convert("L").convert("RGB"))[1] <= 1
    assert difference(ops.solarize(photo), ImageOps.solarize(image, 128))[1] == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_close_to_pils_box_approximation(photo: np.ndarray, sigma: float) -> None:
    inner = (slice(8, -8), slice(8, -8))
    theirs = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
    gap = np.abs(ops.gaussian_blur(photo, sigma)[inner].astype(int) - theirs[inner].astype(int))
    assert gap.mean() < 0.8


def test_blur_of_an_impulse_is_the_gaussian() -> None:
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    x = np.arange(31) - 15.0
    kernel = np.exp(-(x**2) / (2 * 2.0**2))
    kernel /= kernel.sum()
    expected = 255 * np.outer(kernel, kernel)
    assert np.abs(ops.gaussian_blur(image, 2.0)[..., 1] - expected).max() < 1.0  # fixed point


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.brightness(x, 1.3),
        lambda x: ops.contrast(x, 0.5),
        lambda x: ops.gaussian_blur(x, 1.0),
        ops.solarize,
    ],
)
def test_one_channel_keeps_its_shape(operation: object, photo: np.ndarray) -> None:
    gray = photo[..., :1].copy()
    before = gray.copy()
    result = operation(gray)  # type: ignore[operator]
    assert result.shape == gray.shape
    assert result.dtype == np.uint8
    assert (gray == before).all()
