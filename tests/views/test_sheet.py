"""The sheet of views: boxes where they were cut, views as they are, for any number, size and kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.views import View, ViewBatch
from ssl_toolkit.views.sheet import COLOURS, SEED, WIDTH, draw_sheet, save_sheet

GRAY = 90


def batch_of(
    boxes: list[list[float]],
    sides: list[int],
    num_large: int,
    size: tuple[int, int],
    channels: int = 3,
    count: int = 1,
    dtype: torch.dtype = torch.uint8,
) -> ViewBatch:
    """Views of noise; every second one is mirrored."""
    generator = torch.Generator().manual_seed(0)
    views = []
    for number, (box, side) in enumerate(zip(boxes, sides)):
        image = torch.randint(0, 256, (count, channels, side, side), generator=generator).to(dtype)
        flip = torch.full((count,), bool(number % 2))
        views.append(View(image, torch.tensor([box] * count, dtype=torch.float32), flip))
    sizes = torch.tensor([size] * count, dtype=torch.float32)
    return ViewBatch(tuple(views), num_large, sizes, torch.arange(count) * 7)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """``x0, y0, x1, y1`` of what is true, half open."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def places(sheet: np.ndarray, pixels: np.ndarray) -> list[tuple[int, int]]:
    """Every ``(x, y)`` at which ``pixels`` lie in the sheet, unchanged, by brute force."""
    side = pixels.shape[0]
    hits = np.argwhere((sheet[: -side or None, : -side or None] == pixels[0, 0]).all(axis=2))
    return [(x, y) for y, x in hits.tolist() if np.array_equal(sheet[y : y + side, x : x + side], pixels)]


def is_colour(sheet: np.ndarray, number: int) -> np.ndarray:
    return (sheet == np.array(COLOURS[number], dtype=np.uint8)).all(axis=2)


@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_lie_where_the_views_were_cut(scale: int) -> None:
    height, width = SEED[1] // scale, 300 // scale
    boxes = [[10, 20, 90, 100], [0, 0, width, height], [60.0, 30.0, 75.0, 55.0]]
    image = np.full((height, width, 3), GRAY, dtype=np.uint8)
    sheet = draw_sheet([image], batch_of(boxes, [32, 32, 16], 2, (height, width)))
    left, top = bounds(is_colour(sheet, 1)[:, : width * scale + 20])[:2]  # the second box is the whole image
    for number, box in enumerate(boxes):
        mine = is_colour(sheet, number)[:, : left + width * scale + 5]
        expected = tuple(int(v) * scale + (left if i % 2 == 0 else top) for i, v in enumerate(box))
        assert bounds(mine) == expected
        x0, _, x1, y1 = expected
        line = 3 if number < 2 else 2  # large views have thicker lines
        assert mine[y1 - 6, x0 : x0 + line].all()
        assert not mine[y1 - 6, x0 + line]
        assert mine[y1 - line : y1, x1 - 10].all()


def test_views_are_shown_as_they_are() -> None:
    boxes = [[0, 0, 40, 40]] * 8
    batch = batch_of(boxes, [224] * 2 + [96] * 6, 2, (60, 80), count=2)
    images = [np.full((60, 80, 3), GRAY, dtype=np.uint8)] * 2
    sheet = draw_sheet(images, batch)
    assert sheet.shape[1] <= WIDTH
    assert sheet.dtype == np.uint8
    seen = []
    for view in batch.views:
        for row in range(2):
            (place,) = places(sheet, view.image[row].permute(1, 2, 0).numpy())
            seen.append((row, *place))
            number = len(seen[::2]) - 1
            x, y = place
            side = view.image.shape[-1]
            frame = is_colour(sheet, number)
            assert frame[y - 1, x : x + side].all()
            assert frame[y + side, x : x + side].all()
            assert frame[y : y + side, x - 1].all()
            assert frame[y : y + side, x + side].all()
    assert all(y_next > y for (_, _, y), (_, _, y_next) in zip(seen[::2], seen[1::2]))  # the second row is below
    assert max(x for _, x, _ in seen[:4]) + 224 < min(x for _, x, _ in seen[4:])  # small views right of the large


def test_the_arrow_marks_mirrored_views() -> None:
    batch = batch_of([[0, 0, 40, 40]] * 2, [64, 64], 2, (60, 80))
    sheet = draw_sheet([np.full((60, 80, 3), GRAY, dtype=np.uint8)], batch)
    for number, view in enumerate(batch.views):
        ((x, y),) = places(
            sheet, view.image[0].permute(1, 2, 0).repeat_interleave(3, 0).repeat_interleave(3, 1).numpy()
        )
        above = sheet[y - 16 : y - 4, x + 16 : x + 50]  # beside the number
        assert (above < 128).any() == bool(number % 2)


@pytest.mark.parametrize(("count", "num_large"), [(1, 1), (2, 2), (4, 4), (8, 2), (14, 2), (10, 10)])
def test_any_number_of_views_fits(count: int, num_large: int) -> None:
    sides = [224] * num_large + [96] * (count - num_large)
    batch = batch_of([[5, 5, 40, 40]] * count, sides, num_large, (60, 80))
    sheet = draw_sheet([np.full((60, 80, 3), GRAY, dtype=np.uint8)], batch)
    assert sheet.shape[1] <= WIDTH
    found = [places(sheet, view.image[0].permute(1, 2, 0).numpy()) for view in batch.views]
    assert all(len(place) == 1 for place in found)


def test_small_views_are_enlarged_by_whole_factors_and_big_ones_reduced() -> None:
    batch = batch_of([[0, 0, 28, 28]] * 2, [28, 448], 2, (28, 28))
    sheet = draw_sheet([np.full((28, 28, 3), GRAY, dtype=np.uint8)], batch)
    assert len(places(sheet, batch.views[0].image[0].permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1))) == 1
    assert sheet.shape[1] <= WIDTH


def test_channels_types_and_sizes() -> None:
    rng = np.random.default_rng(0)
    for channels, dtype, shape in ((1, np.uint8, (28, 28)), (5, np.uint8, (50, 70)), (2, np.float32, (40, 300))):
        image = rng.integers(0, 256, (*shape, channels)).astype(dtype)
        kind = torch.uint8 if dtype == np.uint8 else torch.float32
        batch = batch_of([[1, 1, 20, 20]] * 2, [96, 48], 1, shape, channels, dtype=kind)
        sheet = draw_sheet([image], batch)
        pixels = batch.views[0].image[0].permute(1, 2, 0).numpy().astype(np.uint8).repeat(2, 0).repeat(2, 1)
        shown = pixels[..., :3] if channels == 5 else pixels[..., :1].repeat(3, axis=2)
        assert len(places(sheet, shown)) == 1
    big = np.zeros((3000, 4000, 3), dtype=np.uint8)
    sheet = draw_sheet([big], batch_of([[0, 0, 4000, 3000]], [224], 1, (3000, 4000)))
    assert bounds(is_colour(sheet, 0)[:, : SEED[0]])[2] <= SEED[0]


def test_float_values_are_rounded_and_clipped() -> None:
    batch = batch_of([[0, 0, 9, 9]], [16], 1, (9, 9))
    image = torch.full((1, 3, 16, 16), 99.6)
    image[..., 0], image[..., 1] = -20.0, 300.0
    batch = ViewBatch((View(image, batch.views[0].box, batch.views[0].flip),), 1, batch.image_size, batch.index)
    sheet = draw_sheet([np.full((9, 9, 3), 0.4, dtype=np.float32)], batch)
    expected = np.full((16, 16, 3), 100, dtype=np.uint8)
    expected[:, 0], expected[:, 1] = 0, 255
    assert len(places(sheet, expected.repeat(14, 0).repeat(14, 1))) == 1


def test_rows_can_be_limited_and_headers_wrap() -> None:
    batch = batch_of([[0, 0, 40, 40]] * 2, [64, 64], 2, (60, 80), count=3)
    images = [np.full((60, 80, 3), GRAY, dtype=np.uint8)] * 3
    whole, two = draw_sheet(images, batch), draw_sheet(images, batch, num_images=2)
    assert two.shape[0] < whole.shape[0]
    assert np.array_equal(whole[: two.shape[0] - 20], two[:-20])
    wrapped = draw_sheet(images, batch, header=["word " * 100])
    plain = draw_sheet(images, batch, header=["word"])
    assert plain.shape[0] + 60 <= wrapped.shape[0]
    assert wrapped.shape[1] == plain.shape[1]
    with pytest.raises(ValueError, match="2 images for a batch of 3"):
        draw_sheet(images[:2], batch)


def test_saved_as_png(tmp_path: Path) -> None:
    batch = batch_of([[0, 0, 40, 40]], [64], 1, (60, 80))
    images = [np.full((60, 80, 3), GRAY, dtype=np.uint8)]
    target = tmp_path / "new" / "views.img"
    save_sheet(target, images, batch)
    with PIL.Image.open(target) as opened:
        assert opened.format == "PNG"
        assert np.array_equal(np.asarray(opened), draw_sheet(images, batch))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_sheet(tmp_path / "file" / "views.png", images, batch)
