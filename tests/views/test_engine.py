"""The torch engine: boxes, flips, sizes, determinism, order of batches."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed
from ssl_toolkit.views import EpochBatches, ViewBatch, ViewDataset, ViewGroup, ViewLoader, ViewsConfig
from ssl_toolkit.views.geometry import DRAWS, random_window

PLAIN: dict[str, Any] = {"jitter": 0.0, "gray": 0.0, "blur": [0.0], "solarize": [0.0]}


class Ramps:
    """Images whose first channel is the column and second the row, so that a view tells where it was cut."""

    classes = ("a", "b")
    in_channels = 3

    def __init__(self, count: int = 20, height: int = 60, width: int = 100) -> None:
        rows, columns = np.mgrid[:height, :width]
        self.pixels = np.stack((columns, rows, np.full_like(rows, 7)), -1).astype(np.uint8)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        return self.pixels

    def label(self, index: int) -> int:
        return index % 2


def views(*groups: ViewGroup) -> ViewsConfig:
    return ViewsConfig(groups=list(groups))


def make(dataset: ViewDataset, count: int = 8, epoch: int = 0) -> ViewBatch:
    batch = dataset.__getitems__([(epoch, i) for i in range(count)])
    assert isinstance(batch, ViewBatch)
    return batch


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


def test_windows_are_distributed_as_torchvisions() -> None:
    numbers = np.random.default_rng(0).random((4000, DRAWS))
    torch.manual_seed(0)
    image = torch.zeros(3, 375, 500)
    scale, ratio = [0.08, 1.0], [0.75, 1.3333]
    ours = np.array([random_window(u, 375, 500, scale, ratio) for u in numbers])
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.arange(501)
        gap = np.abs(np.searchsorted(a, grid, side="right") - np.searchsorted(b, grid, side="right")) / len(a)
        assert gap.max() < 0.044  # Kolmogorov-Smirnov at about one in a thousand


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (50, 50)])
def test_a_window_that_never_fits_falls_back_to_the_centre(height: int, width: int) -> None:
    window = random_window(np.random.default_rng(0).random(DRAWS), height, width, [1.0, 1.0], [0.9, 1.1])
    assert window.top >= 0
    assert window.top + window.height <= height
    assert window.left >= 0
    assert window.left + window.width <= width
    assert window.height >= 1
    assert window.width >= 1


def test_asymmetric_chain_by_position() -> None:
    group = ViewGroup(
        count=3, size=16, flip=0.0, scale=[1.0, 1.0], ratio=[1.0, 1.0], **{**PLAIN, "solarize": [0.0, 1.0]}
    )
    batch = make(ViewDataset(Ramps(height=200, width=200), views(group), seed=0))
    plain, inverted, third = (v.image[0, 0].float().max().item() for v in batch.views)
    assert plain > 190
    assert inverted < 128
    assert third < 128


def test_epochs_are_complete_disjoint_and_reshuffled() -> None:
    processes = [EpochBatches(23, 4, seed=5, rank=r, world=2) for r in range(2)]
    assert [len(p) for p in processes] == [2, 2]
    orders = []
    for step in (0, 2, 4):
        seen = []
        for process in processes:
            process.step = step
            batches = list(process)
            assert [len(b) for b in batches] == [4, 4]
            assert {epoch for b in batches for epoch, _ in b} == {step // 2}
            seen += [i for b in batches for _, i in b]
        assert len(set(seen)) == 16
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]


def test_an_epoch_can_start_in_the_middle() -> None:
    whole, rest = EpochBatches(40, 4, seed=0), EpochBatches(40, 4, seed=0)
    whole.step, rest.step = 10, 13
    assert list(whole)[3:] == list(rest)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_same_batches_with_any_workers(workers: int) -> None:
    config = views(ViewGroup(count=2, size=16))
    loader = ViewLoader(Ramps(), config, seed=0, batch_size=4, workers=workers, position=lambda: 6, pin_memory=False)
    batches = list(loader)
    assert len(loader) == 5
    assert len(batches) == 4
    direct = EpochBatches(20, 4, seed=0)
    direct.step = 6
    for batch, keys in zip(batches, direct):
        expected = ViewDataset(Ramps(), config, seed=0).__getitems__(keys)
        assert isinstance(expected, ViewBatch)
        assert torch.equal(batch.index, expected.index)
        assert torch.equal(batch.views[1].image, expected.views[1].image)


def test_closing_stops_the_workers_at_once() -> None:
    loader = ViewLoader(Ramps(), views(ViewGroup(size=16)), seed=0, batch_size=2, workers=2)
    batches = iter(loader)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert not multiprocessing.active_children()
    with pytest.raises(StopIteration):
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_reaches_the_user_as_it_is(workers: int) -> None:
    class Broken(Ramps):
        def image(self, index: int) -> np.ndarray:
            raise UserError("photos/x.jpg cannot be decoded")

    loader = ViewLoader(Broken(), views(ViewGroup()), seed=0, batch_size=2, workers=workers)
    with pytest.raises(UserError, match=r"^photos/x\.jpg cannot be decoded$"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": []}, "groups must start with large views"),
        ({"groups": [{"large": False}]}, "groups must start with large"),
        ({"groups": [{}, {"large": False}, {}]}, "large views before small"),
        ({"groups": [{"size": 4}]}, "size >= 8"),
        ({"groups": [{"scale": [0.5, 0.1]}]}, "scale must be two positive numbers"),
        ({"groups": [{"scale": [0.5, 2.0]}]}, "at most 1"),
        ({"groups": [{"flip": 2}]}, "flip is a probability"),
        ({"groups": [{"blur": []}]}, "blur must be a list"),
        ({"groups": [{"hue": 0.7}]}, "hue between 0 and 0.5"),
        ({"groups": [{"interpolation": "nearest"}]}, "interpolation must be"),
        ({"groups": [{"colour": 1}]}, "colour"),
        ({"engine": "magic"}, "engine must be torch"),
    ],
)
def test_bad_recipes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(ViewsConfig, options, "views")


def test_too_few_images_are_named() -> None:
    with pytest.raises(UserError, match="64 images a step asked of a data set of 20"):
        EpochBatches(20, 64, seed=0)


def test_batches_validate_and_move() -> None:
    batch = make(ViewDataset(Ramps(), views(ViewGroup(size=16)), seed=0))
    assert len(batch.to("cpu")) == 8
    normalised = batch.with_images(lambda t: t.float())
    assert normalised.views[0].image.dtype == torch.float32
    assert torch.equal(normalised.views[0].box, batch.views[0].box)
    with pytest.raises(ValueError, match="num_large is 3 with 2 views"):
        ViewBatch(batch.views, 3, batch.image_size, batch.index)
