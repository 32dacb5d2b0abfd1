"""Each operation against PIL, with the tolerance it keeps (the table of docs/views.md), and the whole chain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ssl_toolkit.views import ViewDataset, ViewGroup
from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.geometry import Window
from ssl_toolkit.views.settings import Settings, random_numbers, settings_of
from ssl_toolkit.views.torch_engine import resized_crop
from tests.views.helpers import Photos, make, views

FACTORS = [0.0, 0.37, 0.6, 1.0, 1.4, 1.93]
TURNS = [-0.5, -0.3, -0.05, 0.0, 0.1, 0.5]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(load_sample_image("china.jpg")[100:228, 200:360])


def difference(ours: np.ndarray, theirs: Image.Image) -> tuple[float, int]:
    gap = np.abs(ours.astype(int) - np.asarray(theirs).astype(int).reshape(ours.shape))
    return float(gap.mean()), int(gap.max())


CASES: dict[str, tuple[Callable[..., np.ndarray], Callable[..., Image.Image], list[float], float, int]] = {
    # ours, PIL's through torchvision, values, mean difference at most, largest at most
    "brightness": (ops.brightness, F.adjust_brightness, FACTORS, 0.01, 1),
    "contrast": (ops.contrast, F.adjust_contrast, FACTORS, 0.1, 1),
    "saturation": (ops.saturation, F.adjust_saturation, FACTORS, 0.5, 1),
    "hue": (ops.hue, F.adjust_hue, TURNS, 0.4, 8),
    "gray": (lambda x, _: ops.grayscale(x), lambda x, _: F.to_grayscale(x, 3), [0.0], 0.01, 1),
    "solarize": (lambda x, _: ops.solarize(x), lambda x, _: ImageOps.solarize(x), [0.0], 0.0, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_keep_their_tolerance(name: str, photo: np.ndarray) -> None:
    ours, theirs, values, mean, largest = CASES[name]
    for value in values:
        before = photo.copy()
        gap = difference(ours(photo, value), theirs(Image.fromarray(photo), value))
        assert gap[0] <= mean, value
        assert gap[1] <= largest, value
        assert (photo == before).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 224])
def test_crop_and_resize_are_pils_to_one_level(interpolation: str, size: int, photo: np.ndarray) -> None:
    mode = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[interpolation]
    image = torch.from_numpy(photo)[None].permute(0, 3, 1, 2)
    out = torch.empty((1, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    resized_crop(image, Window(10, 20, 100, 90), interpolation, out)
    expected = F.resized_crop(Image.fromarray(photo), 10, 20, 100, 90, [size, size], mode)
    mean, largest = difference(out[0].permute(1, 2, 0).numpy(), expected)
    assert mean < 0.01
    assert largest <= 1


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_close_to_pils_box_approximation(photo: np.ndarray, sigma: float) -> None:
    inner = (slice(8, -8), slice(8, -8))
    theirs = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
    gap = np.abs(ops.gaussian_blur(photo, sigma)[inner].astype(int) - theirs[inner].astype(int))
    assert gap.mean() < 0.8
    assert gap.max() <= 10


def gaussian(sigma: float, size: int = 31) -> np.ndarray:
    x = np.arange(size) - size // 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    return 255 * np.outer(kernel, kernel)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0])
def test_blur_of_an_impulse_is_the_gaussian(sigma: float) -> None:
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    assert np.abs(ops.gaussian_blur(image, sigma)[..., 1] - gaussian(sigma)).max() < 0.8  # rounding and a cut tail
    deep = ops.gaussian_blur(image.astype(np.float32), sigma)
    assert np.abs(deep[..., 1] - gaussian(sigma)).max() < 0.5


def as_pil_does_it(image: Image.Image, settings: Settings, group: ViewGroup) -> Image.Image:
    """A view by torchvision's functions on PIL images, in the order of ``settings``."""
    size = [group.size, group.size]
    image = F.resized_crop(image, *settings.window, size, InterpolationMode(group.interpolation))
    image = F.hflip(image) if settings.flip else image
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for step, value in settings.jitter:
        image = steps[step](image, value)
    image = F.to_grayscale(image, 3) if settings.gray else image
    image = image.filter(ImageFilter.GaussianBlur(settings.sigma)) if settings.sigma else image
    return ImageOps.solarize(image) if settings.solarize else image


def test_whole_views_are_those_of_torchvision_on_pil_images() -> None:
    group = ViewGroup(count=2, size=96, jitter=1.0, gray=0.2, blur=[0.5], solarize=[0.0])
    images = Photos(12)
    batch = make(ViewDataset(images, views(group), seed=4), 12)
    for index in range(12):
        pixels = images.image(index)
        for position, numbers in enumerate(random_numbers(4, 0, index, 2)):
            settings = settings_of(numbers, group, position, *pixels.shape[:2], True)
            view = batch.views[position]
            assert view.box[index].tolist() == [float(v) for v in settings.box()]
            assert bool(view.flip[index]) == settings.flip
            expected = as_pil_does_it(Image.fromarray(pixels), settings, group)
            mean, _ = difference(view.image[index].permute(1, 2, 0).numpy(), expected)
            assert mean < 1.6


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 200])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_other_channels_and_depths_keep_their_shape_and_range(channels: int, dtype: type, photo: np.ndarray) -> None:
    many = [np.roll(photo, shift, axis=0) for shift in range(-(-channels // 3))]
    image = np.concatenate(many, axis=-1)[..., :channels].astype(dtype)
    before = image.copy()
    for operation in (
        lambda x: ops.brightness(x, 1.7),
        lambda x: ops.contrast(x, 1.8),
        lambda x: ops.gaussian_blur(x, 1.0),
        ops.solarize,
    ):
        result = operation(image)
        assert result.shape == image.shape
        assert result.dtype == dtype
        assert result.min() >= 0
        assert result.max() <= 255
        assert (image == before).all()
    assert (ops.mirror(image) == image[:, ::-1]).all()
    last = ops.gaussian_blur(np.ascontiguousarray(image[..., -1:]), 1.0)
    assert (ops.gaussian_blur(image, 1.0)[..., -1:] == last).all()
    scaled = np.clip(1.7 * image.astype(np.float64), 0, 255)
    assert np.abs(ops.brightness(image, 1.7) - scaled).max() <= 1
    mean = image.mean(dtype=np.float64)
    expected = np.clip(mean + 1.8 * (image - mean), 0, 255)
    assert np.abs(ops.contrast(image, 1.8) - expected).max() <= 1.5


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_solarize_inverts_from_128_on(dtype: type) -> None:
    image = np.array([0, 127, 128, 129, 255], dtype).reshape(1, 5, 1)
    assert ops.solarize(image).ravel().tolist() == [0, 127, 127, 126, 0]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.brightness(x, 1.3),
        lambda x: ops.contrast(x, 0.5),
        lambda x: ops.saturation(x, 1.7),
        lambda x: ops.hue(x, 0.2),
        ops.grayscale,
        ops.solarize,
        lambda x: ops.gaussian_blur(x, 1.0),
    ],
)
def test_sixteen_bits_are_the_same_operation_without_rounding(
    operation: Callable[[np.ndarray], np.ndarray], photo: np.ndarray
) -> None:
    smooth = ops.gaussian_blur(photo, 2.0)  # away from the grays, whose hue is noise
    deep = operation(smooth.astype(np.float32))
    assert deep.dtype == np.float32
    gap = np.abs(deep - operation(smooth).astype(np.float32))
    assert gap.mean() < 1.5
    finer = operation((smooth.astype(np.float32) + np.float32(0.25)).clip(0, 255))
    assert 0 < np.abs(finer - deep).mean() < 2.0
