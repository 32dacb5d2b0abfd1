"""The torch engine: boxes, flips, sizes, chains, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_toolkit.views import ViewBatch, ViewDataset, ViewGroup
from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.geometry import Window
from ssl_toolkit.views.settings import CONTRAST, HUE, Settings
from ssl_toolkit.views.torch_engine import photometric
from tests.views.helpers import PLAIN, Ramps, make, views


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_flips_tell_where_the_pixels_come_from(flip: float) -> None:
    config = views(ViewGroup(count=2, size=16, scale=[0.2, 0.8], flip=flip, interpolation="bilinear", **PLAIN))
    batch = make(ViewDataset(Ramps(), config, seed=3))
    for view in batch.views:
        assert view.flip.all() == bool(flip)
        for b in range(len(batch)):
            x0, y0, x1, y1 = view.box[b].tolist()
            # A ramp resized with half-pixel centres is a ramp over the box.
            columns = x0 + (np.arange(16) + 0.5) * (x1 - x0) / 16 - 0.5
            rows = y0 + (np.arange(16) + 0.5) * (y1 - y0) / 16 - 0.5
            columns = columns[::-1] if flip else columns
            inner = slice(2, -2)  # the antialias filter is cut off at the border
            assert np.abs(view.image[b, 0].numpy()[inner, inner] - columns[None, inner]).max() < 1.01
            assert np.abs(view.image[b, 1].numpy()[inner, inner] - rows[inner, None]).max() < 1.01
    assert (batch.image_size == torch.tensor([60.0, 100.0])).all()


@pytest.mark.parametrize(
    "groups",
    [
        [ViewGroup(count=2, size=32)],
        [ViewGroup(count=4, size=24)],
        [ViewGroup(count=2, size=32), ViewGroup(count=6, size=16, large=False)],
    ],
)
def test_any_number_of_views(groups: list[ViewGroup]) -> None:
    config = views(*groups)
    batch = make(ViewDataset(Ramps(), config, seed=0))
    assert len(batch.views) == config.num_views
    assert batch.num_large == sum(g.count for g in groups if g.large)
    for view, size in zip(batch.views, config.sizes()):
        assert view.image.shape == (8, 3, size, size)
        assert view.image.dtype == torch.uint8
        x0, y0, x1, y1 = view.box.unbind(1)
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= 100) & (y0 >= 0) & (y0 < y1) & (y1 <= 60)).all()
    assert batch.label is not None
    assert batch.label.tolist() == [0, 1] * 4


def test_views_depend_on_seed_epoch_and_image_alone() -> None:
    config = views(ViewGroup(count=2, size=16))
    first = make(ViewDataset(Ramps(), config, seed=1))
    again = make(ViewDataset(Ramps(), config, seed=1), count=3)
    assert torch.equal(first.views[1].image[:3], again.views[1].image)
    for other in (
        make(ViewDataset(Ramps(), config, seed=2)),
        make(ViewDataset(Ramps(), config, seed=1), epoch=1),
    ):
        assert not torch.equal(first.views[0].box, other.views[0].box)
    assert not torch.equal(first.views[0].box, first.views[1].box)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_sixteen_bits_keep_their_fractions_and_stay_in_range(interpolation: str) -> None:
    class Stripes(Ramps):
        def image(self, index: int) -> np.ndarray:
            return 255 * (self.pixels % 2).astype(np.float32)  # bicubic overshoots

    config = views(ViewGroup(count=2, size=64, scale=[0.3, 0.3], interpolation=interpolation, **PLAIN))
    for view in make(ViewDataset(Stripes(), config, seed=0)).views:
        assert view.image.dtype == torch.float32
        assert view.image.min() >= 0
        assert view.image.max() <= 255
        assert (view.image != view.image.round()).any()


def test_the_chain_is_jitter_gray_blur_solarize() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    jitter = ((HUE, 0.3), (CONTRAST, 1.7))
    settings = Settings(Window(0, 0, 24, 24), False, jitter, gray=True, sigma=0.8, solarize=True)
    jittered = ops.contrast(ops.hue(image, 0.3), 1.7)
    expected = ops.solarize(ops.gaussian_blur(ops.grayscale(jittered), 0.8))
    assert np.array_equal(photometric(image, settings), expected)


def test_asymmetric_chain_by_position() -> None:
    group = ViewGroup(
        count=3, size=16, flip=0.0, scale=[1.0, 1.0], ratio=[1.0, 1.0], **{**PLAIN, "solarize": [0.0, 1.0]}
    )
    batch = make(ViewDataset(Ramps(height=200, width=200), views(group), seed=0))
    plain, inverted, third = (v.image[0, 0].float().max().item() for v in batch.views)
    assert plain > 190
    assert inverted < 128
    assert third < 128


def test_batches_validate_and_move() -> None:
    batch = make(ViewDataset(Ramps(), views(ViewGroup(size=16)), seed=0))
    assert len(batch.to("cpu")) == 8
    moved = batch.to("meta")
    assert moved.label is not None
    tensors = [moved.image_size, moved.index, moved.label]
    assert all(t.is_meta for t in [*tensors, *(t for v in moved.views for t in (v.image, v.box, v.flip))])
    normalised = batch.with_images(lambda t: t.float())
    assert normalised.views[0].image.dtype == torch.float32
    assert torch.equal(normalised.views[0].box, batch.views[0].box)
    with pytest.raises(ValueError, match="num_large is 3 with 2 views"):
        ViewBatch(batch.views, 3, batch.image_size, batch.index)
