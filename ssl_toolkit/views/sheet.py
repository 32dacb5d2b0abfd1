"""A sheet of example views: each image with its crop boxes, and the views cut from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.transforms import as_rgb
from ssl_toolkit.files import atomic_path
from ssl_toolkit.views.batch import ViewBatch

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (187, 187, 187),
)
"""Of the views in turn: Okabe and Ito's, safe for colour-blind readers, light gray in place of their black, which is
lost on dark images. More views start again; their numbers tell them apart."""

PAPER: Colour = (255, 255, 255)
INK: Colour = (36, 41, 47)
FAINT: Colour = (101, 109, 118)

WIDTH = 1400
"""Pixels that a sheet of 2 + 6 views fits into."""
SEED = (380, 230)
"""Width and height that an image is fitted into."""
LARGE, SMALL = 224, 96
"""Sides that views are fitted into."""

_MARGIN, _GAP, _CAPTION, _TAG = 14, 8, 18, 15
_LINE = {True: 3, False: 2}  # of boxes and frames, by large or not


class _Cell(NamedTuple):
    """One view on the sheet: its number from 0, and the corner of its block (caption, frame and view)."""

    view: int
    x: int
    y: int


class _Layout(NamedTuple):
    """Where the views of one image go, relative to the row's corner, and how much room a row takes."""

    cells: list[_Cell]
    width: int
    height: int


def draw_sheet(
    images: Sequence[NDArray[Any]], batch: ViewBatch, num_images: int | None = None, header: Sequence[str] = ()
) -> Pixels:
    """One row per image: left the image with the box of every view, right the views in the colours of their boxes.

    Boxes of large views have thicker lines, and an arrow marks mirrored views. Views are shown pixel by pixel: reduced
    only if they are above `LARGE` or `SMALL` pixels, enlarged only by whole factors.

    Args:
        images: the seed images of ``batch`` in its order, ``(H, W, C)``, uint8 or floating point in 0 to 255. One
            channel is shown as gray; of more than three the first three.
        batch: with the views in the same units, not normalised.
        num_images: rows at most; all where it is None.
        header: lines written above, such as `ViewGroup.describe` of each group; long ones are wrapped.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    if len(images) != len(batch):
        raise ValueError(f"{len(images)} images for a batch of {len(batch)}")
    rows = len(images) if num_images is None else min(num_images, len(images))
    views = [_displayable(view.image[:rows]) for view in batch.views]
    shown = [_limited(pixels, LARGE if v < batch.num_large else SMALL) for v, pixels in enumerate(views)]
    seed_width = max(_seed_size(image)[0] for image in images[:rows])
    layout = _arrange(seed_width, [pixels.shape[1] for pixels in shown], batch.num_large)
    canvas = _Canvas(layout.width, header, _legend(images[0].shape[2]))
    canvas.grow(rows * (layout.height + 2 * _GAP))
    for row in range(rows):
        top = canvas.top + row * (layout.height + 2 * _GAP)
        _draw_seed(canvas, images[row], batch, row, top)
        for cell in layout.cells:
            flip = bool(batch.views[cell.view].flip[row])
            canvas.view(shown[cell.view][row], cell, top, cell.view < batch.num_large, flip)
    return np.asarray(canvas.image)


def save_sheet(
    path: Path,
    images: Sequence[NDArray[Any]],
    batch: ViewBatch,
    num_images: int | None = None,
    header: Sequence[str] = (),
) -> None:
    """`draw_sheet` as a PNG, whatever the suffix of ``path``.

    Raises:
        UserError: it cannot be written.
    """
    sheet = PIL.Image.fromarray(draw_sheet(images, batch, num_images, header))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _legend(channels: int) -> str:
    text = "Left the image with the crop of each view, right the views; a double arrow marks mirrored ones."
    if channels in (1, 3):
        return text
    return f"{text} Shown: the first {'' if channels < 3 else 'three '}of {channels} channels."


def _displayable(pixels: torch.Tensor) -> Pixels:
    """``(B, C, S, S)`` as ``(B, S, S, 3)`` uint8."""
    return as_rgb(pixels.detach().cpu().permute(0, 2, 3, 1).numpy())


def _limited(pixels: Pixels, limit: int) -> Pixels:
    """Square images ``(B, S, S, 3)`` at no more than ``limit`` pixels: whole multiples, or reduced."""
    side = pixels.shape[1]
    if side <= limit:
        factor = limit // side
        return pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.stack([_resized(image, limit, limit) for image in pixels])


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    how = PIL.Image.Resampling.LANCZOS if height < 2 * pixels.shape[0] else PIL.Image.Resampling.NEAREST
    return np.asarray(PIL.Image.fromarray(pixels).resize((width, height), how, reducing_gap=3.0))


def _block(side: int, large: bool) -> tuple[int, int]:
    """Width and height of a view with its frame and caption."""
    return side + 2 * _LINE[large], side + 2 * _LINE[large] + _CAPTION


def _arrange(seed_width: int, sides: Sequence[int], num_large: int) -> _Layout:
    """Large views in a grid right of the image, small ones in a tighter grid beside them, about as high."""
    left = seed_width + 2 * _GAP
    width, height = _block(max(sides[:num_large]), True)
    columns = _columns(num_large, width, left, 2 if len(sides) > num_large else num_large)
    cells = _grid(range(num_large), left, columns, width, height)
    block_height = math.ceil(num_large / columns) * (height + _GAP)
    left += columns * (width + _GAP)
    if len(sides) > num_large:
        width, height = _block(max(sides[num_large:]), False)
        rows = max(1, round(block_height / (height + _GAP)))
        columns = _columns(len(sides) - num_large, width, left + _GAP, math.ceil((len(sides) - num_large) / rows))
        cells += _grid(range(num_large, len(sides)), left + _GAP, columns, width, height)
        block_height = max(block_height, math.ceil((len(sides) - num_large) / columns) * (height + _GAP))
        left += _GAP + columns * (width + _GAP)
    return _Layout(cells, left - _GAP, max(block_height - _GAP, SEED[1] + _CAPTION))


def _columns(count: int, width: int, left: int, wanted: int) -> int:
    """Columns of a grid that starts at ``left``: as many as wanted and fit, with rows of about the same length."""
    most = max(1, min(count, wanted, (WIDTH - 2 * _MARGIN - left + _GAP) // (width + _GAP)))
    return math.ceil(count / math.ceil(count / most))


def _grid(views: Sequence[int], left: int, columns: int, width: int, height: int) -> list[_Cell]:
    return [
        _Cell(view, left + (i % columns) * (width + _GAP), (i // columns) * (height + _GAP))
        for i, view in enumerate(views)
    ]


class _Canvas:
    """The sheet as it is drawn; x and y count from its margin.

    Args:
        width: of the rows in pixels.
        header, legend: text at the top.
    """

    def __init__(self, width: int, header: Sequence[str], legend: str) -> None:
        self.font, self.small = (PIL.ImageFont.load_default(size=size) for size in (15, 12))
        self.width = max(width, 800) + 2 * _MARGIN
        lines = [line for text in header for line in self._wrapped(text, self.width - 2 * _MARGIN)]
        self.top = _MARGIN + 20 * len(lines) + 22 + _GAP
        self._set(PIL.Image.new("RGB", (self.width, self.top + _MARGIN), PAPER))
        for number, line in enumerate(lines):
            self.draw.text((_MARGIN, _MARGIN + 20 * number), line, fill=INK, font=self.font)
        self.caption(legend, 0, _MARGIN + 20 * len(lines))

    def _set(self, image: PIL.Image.Image) -> None:
        self.image = image
        self.draw = PIL.ImageDraw.Draw(image)

    def _wrapped(self, text: str, width: int) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.font.getlength(longer) > width:
                lines.append(f"    {word}")
            else:
                lines[-1] = longer if not lines[-1].startswith("    ") else f"{lines[-1]} {word}"
        return lines

    def grow(self, pixels: int) -> None:
        """Make room for the rows below the header."""
        taller = PIL.Image.new("RGB", (self.width, self.image.height + pixels), PAPER)
        taller.paste(self.image)
        self._set(taller)

    def paste(self, pixels: Pixels, x: int, y: int) -> None:
        """Put an image at a place of the sheet."""
        self.image.paste(PIL.Image.fromarray(pixels), (_MARGIN + x, y))

    def caption(self, text: str, x: int, y: int) -> None:
        """Small text whose box starts at the place."""
        self.draw.text((_MARGIN + x, y + 1), text, fill=FAINT, font=self.small)

    def tag(self, view: int, x: int, y: int) -> None:
        """The number of a view, from 1, on its colour; ``x`` is of the sheet."""
        colour = COLOURS[view % len(COLOURS)]
        text = str(view + 1)
        width = tag_width(view)
        self.draw.rectangle((x, y, x + width - 1, y + _TAG - 1), fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130
        centre = (x + width / 2, y + _TAG / 2)
        self.draw.text(centre, text, fill=(0, 0, 0) if bright else PAPER, font=self.small, anchor="mm")

    def view(self, pixels: Pixels, cell: _Cell, top: int, large: bool, flip: bool) -> None:
        """A view in its frame, with its number and the arrow of a mirrored one above."""
        colour, line = COLOURS[cell.view % len(COLOURS)], _LINE[large]
        x, y = _MARGIN + cell.x, top + cell.y + _CAPTION
        height, width = pixels.shape[:2]
        self.tag(cell.view, x, y - _TAG)
        if flip:
            self._arrow(x + tag_width(cell.view) + 5, y - _TAG + 3)
        self.draw.rectangle((x, y, x + width + 2 * line - 1, y + height + 2 * line - 1), fill=colour)
        self.paste(pixels, cell.x + line, y + line)

    def _arrow(self, x: int, y: int) -> None:
        """A double-headed arrow of 20 x 9 pixels, drawn larger and reduced for smooth slopes."""
        fine = PIL.Image.new("L", (160, 72), 0)
        draw = PIL.ImageDraw.Draw(fine)
        draw.rectangle((32, 30, 128, 42), fill=255)
        draw.polygon([(0, 36), (48, 4), (48, 68)], fill=255)
        draw.polygon([(159, 36), (111, 4), (111, 68)], fill=255)
        self.image.paste(INK, (x, y), fine.resize((20, 9), PIL.Image.Resampling.LANCZOS))


def tag_width(view: int) -> int:
    """Pixels that the number of a view takes."""
    return _TAG if view < 9 else _TAG + 7


def _seed_size(image: NDArray[Any]) -> tuple[int, int]:
    """Width and height at which an image is shown: fitted into `SEED`, whole multiples from 2 on."""
    height, width = image.shape[:2]
    scale = min(SEED[0] / width, SEED[1] / height)
    if scale >= 2:
        scale = int(scale)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw_seed(canvas: _Canvas, image: NDArray[Any], batch: ViewBatch, row: int, top: int) -> None:
    height, width = image.shape[:2]
    shown = _seed_size(image)
    x, y = _MARGIN, top + _CAPTION
    canvas.caption(f"image {int(batch.index[row])}, {width} x {height}", 0, top)
    canvas.paste(_resized(as_rgb(image), *shown), 0, y)
    corners = []
    for number, view in enumerate(batch.views):
        ratio = np.array([shown[0] / width, shown[1] / height] * 2)
        x0, y0, x1, y1 = np.rint(view.box[row].double().cpu().numpy() * ratio).astype(int).tolist()
        corners.append((x + x0, y + y0, x + max(x1, x0 + 1), y + max(y1, y0 + 1)))
        _draw_box(canvas, corners[-1], number, number < batch.num_large)
    taken: list[tuple[int, int]] = []
    for number, box in enumerate(corners):
        taken.append(_free_corner(box, tag_width(number), taken))
        canvas.tag(number, *taken[-1])


def _draw_box(canvas: _Canvas, box: tuple[int, int, int, int], view: int, large: bool) -> None:
    """The outline of a half-open box, inside it, with a thin dark line within so that it shows on any image."""
    x0, y0, x1, y1 = box
    line = min(_LINE[large], max(1, (min(x1 - x0, y1 - y0) - 1) // 2))
    colour = COLOURS[view % len(COLOURS)]
    canvas.draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=line)
    if min(x1 - x0, y1 - y0) > 2 * line + 2:
        canvas.draw.rectangle((x0 + line, y0 + line, x1 - 1 - line, y1 - 1 - line), outline=(0, 0, 0), width=1)


def _free_corner(box: tuple[int, int, int, int], width: int, taken: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """A place for a number on the border of a box: a corner, else along the edges, where no other number is."""
    x0, y0, x1, y1 = box
    right, bottom = max(x0, x1 - width), max(y0, y1 - _TAG)
    places = [(x0, y0), (right, y0), (x0, bottom), (right, bottom)]
    places += [(x, y) for y in (y0, bottom) for x in range(x0, right, width)]
    places += [(x, y) for x in (x0, right) for y in range(y0, bottom, _TAG)]
    for x, y in places:
        if all(abs(x - a) >= width or abs(y - b) >= _TAG for a, b in taken):
            return x, y
    return places[0]
