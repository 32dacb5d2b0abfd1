"""How often the nearest feature is the right place: counts of one direction of pairs of views, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.evaluation.view_pairs import double
from ssl_toolkit.matching import squared_distances

TIE = 1e-12
"""Squared distances that differ by less, in units of the mean squared length of the vectors, are equal: below what
float32 features can tell apart."""

RADII = (0, 1, 2)
"""Cells from the right one within which a match counts as right."""

PAIR_NUMBERS = 2**22
"""Pairs of cells that are held at once."""


@dataclass(frozen=True)
class Crop:
    """A view of each of B images, divided into cells.

    Attributes:
        box: ``(B, 4)``, ``x0, y0, x1, y1`` in whole pixels of the seed image, half open.
        flip: ``(B,)`` bool, mirrored left to right.
        height, width: cells.
    """

    box: Tensor
    flip: Tensor
    height: int
    width: int

    def __getitem__(self, images: slice) -> Crop:
        return Crop(self.box[images], self.flip[images], self.height, self.width)


class Places(NamedTuple):
    """Where the P cell centres of one view lie in another.

    Attributes:
        inside: ``(B, P)`` bool, whether the centre lies in the other view.
        row, column: ``(B, P)`` int64, the cell that contains it; beyond the map where it lies outside.
        y, x: ``(B, P)`` float64, the point itself, in cells of the other view.
    """

    inside: Tensor
    row: Tensor
    column: Tensor
    y: Tensor
    x: Tensor


def places(query: Crop, key: Crop) -> Places:
    """Where the cell centres of ``query`` lie in ``key``, in raster order.

    In whole numbers throughout: a centre on the border of two cells always belongs to the one whose half-open
    rectangle in the seed image begins there, whatever the flips.
    """
    batch = (len(query.box), query.height, query.width)
    qx0, qy0, qx1, qy1 = query.box.cpu().round().long().T
    kx0, ky0, kx1, ky1 = key.box.cpu().round().long().T
    rows = _along(qy0, qy1, query.height, ky0, ky1, key.height)
    columns = _along(qx0, qx1, query.width, kx0, kx1, key.width)
    turned = query.flip.cpu()[:, None]
    column_in, column, x = (torch.where(turned, t.flip(1), t) for t in columns)
    mirrored = key.flip.cpu()[:, None]
    column, x = column.where(~mirrored, key.width - 1 - column), x.where(~mirrored, key.width - x)
    row_in, row, y = (t[:, :, None].expand(batch).flatten(1) for t in rows)
    column_in, column, x = (t[:, None, :].expand(batch).flatten(1) for t in (column_in, column, x))
    return Places(row_in & column_in, row, column, y, x)


def _along(q0: Tensor, q1: Tensor, steps: int, k0: Tensor, k1: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the centres of ``steps`` parts of q0..q1: inside k0..k1, in which of its ``cells``, and the point in cells."""
    part = 2 * torch.arange(steps) + 1
    above = (q0 - k0)[:, None] * (2 * steps) + part * (q1 - q0)[:, None]  # in pixels / (2 steps)
    side = ((k1 - k0) * (2 * steps))[:, None]
    cell = torch.div(above * cells, side, rounding_mode="floor")
    return (above >= 0) & (above < side), cell, (above * cells).double() / side


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union ``(B,)`` float64 of boxes ``(B, 4)``."""
    a, b = a.double(), b.double()
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0)
    common = sides.prod(1)
    return common / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common)


def dissimilarity(query: Tensor, key: Tensor, distance: str) -> Tensor:
    """Squared distances ``(B, P, Q)`` in float64 of vectors ``(B, P, C)`` and ``(B, Q, C)``, in units of their mean
    squared length; ``cosine`` brings them to unit length first, ``l2`` does not."""
    query, key = double(query), double(key)
    if distance == "cosine":
        query, key = F.normalize(query, dim=2), F.normalize(key, dim=2)
    length = (query.square().sum(2).mean(1) + key.square().sum(2).mean(1)) / 2
    return squared_distances(query, key) / length.clamp_min(torch.finfo(torch.float64).tiny)[:, None, None]


COUNTS = (
    "cells",
    *(f"match_{r}" for r in RADII),
    *(f"chance_{r}" for r in RADII),
    "error_cells",
    "error_pixels",
    "chance_error_cells",
    "chance_error_pixels",
)
"""The columns of `match_counts`: cells, and sums over them."""


def match_counts(query: Tensor, key: Tensor, true: Places, crop: Crop, distance: str) -> NDArray[np.float64]:
    """Sums over the cells of each image whose centre lies in the other view, ``(B, len(COUNTS))``.

    ``match_r`` counts cells whose nearest feature lies at most r rows and r columns from the cell that contains the
    true point; the errors are distances from the true point to the centre of the nearest feature's cell, in cells of
    the searched view and in pixels of the seed image. Of equally near features each counts by its share. The chance of
    each is that of a random cell of the searched view.

    Args:
        query, key: maps ``(B, C, H, W)`` of the two views.
        true: `places` of the query's cells in the key's view.
        crop: the key's view.
        distance: ``cosine`` or ``l2``.
    """
    each = max(1, PAIR_NUMBERS // (query[0, 0].numel() * key[0, 0].numel()))
    parts = [slice(i, i + each) for i in range(0, len(query), each)]
    return np.concatenate([_counts(query[p], key[p], Places(*(t[p] for t in true)), crop[p], distance) for p in parts])


def _counts(query: Tensor, key: Tensor, true: Places, crop: Crop, distance: str) -> NDArray[np.float64]:
    found = dissimilarity(query.flatten(2).mT, key.flatten(2).mT, distance)
    nearest = (found <= found.amin(2, keepdim=True) + TIE).double()
    nearest /= nearest.sum(2, keepdim=True)
    true = Places(*(t.to(nearest.device) for t in true))
    inside = true.inside.double()
    columns = [inside.sum(1)]
    errors = _errors(true, crop, nearest.device)
    chances = []
    for right in [*_within(true, crop, nearest.device), *errors]:
        columns.append(((nearest * right).sum(2) * inside).sum(1))
        chances.append((right.double().mean(2) * inside).sum(1))
    matches, apart = columns[1 : 1 + len(RADII)], columns[1 + len(RADII) :]
    ordered = [columns[0], *matches, *chances[: len(RADII)], *apart, *chances[len(RADII) :]]
    return torch.stack(ordered, 1).cpu().numpy()


def _within(true: Places, crop: Crop, device: torch.device) -> list[Tensor]:
    """For each radius, which key cells ``(B, P, Q)`` are that close to the true cell."""
    cells = torch.arange(crop.height * crop.width, device=device)
    rows = (true.row[:, :, None] - cells // crop.width).abs()
    columns = (true.column[:, :, None] - cells % crop.width).abs()
    apart = torch.maximum(rows, columns)
    return [apart <= radius for radius in RADII]


def _errors(true: Places, crop: Crop, device: torch.device) -> list[Tensor]:
    """Distances ``(B, P, Q)`` of the true point to the centre of each key cell, in cells and in pixels."""
    cells = torch.arange(crop.height * crop.width, device=device)
    down = true.y[:, :, None] - (cells // crop.width + 0.5)
    right = true.x[:, :, None] - (cells % crop.width + 0.5)
    box = double(crop.box).to(device)
    high, wide = (box[:, 3] - box[:, 1]) / crop.height, (box[:, 2] - box[:, 0]) / crop.width
    return [torch.hypot(down, right), torch.hypot(down * high[:, None, None], right * wide[:, None, None])]


class Similarities(NamedTuple):
    """Cosine similarities of pairs of cells, float64, and the image of the batch that each belongs to, int64.

    Attributes:
        matched: of the cells whose centre lies in the other view, with the cell that contains it.
        same: of all cells, with a random other cell of the other view.
        other: of all cells, with a random cell of another image's other view.
    """

    matched: NDArray[np.float64]
    matched_image: NDArray[np.int64]
    same: NDArray[np.float64]
    other: NDArray[np.float64]
    image: NDArray[np.int64]


def similarities(query: Tensor, key: Tensor, true: Places, generator: np.random.Generator) -> Similarities:
    """Of one direction of the pairs of maps ``(B, C, H, W)``; another image is the next of the batch."""
    width, count = key.shape[3], key.shape[2] * key.shape[3]
    q, k = (F.normalize(double(m.flatten(2).mT), dim=2).cpu() for m in (query, key))
    inside, right = true.inside.numpy(), (true.row * width + true.column).numpy()
    drawn = generator.integers(max(count - 1, 1), size=right.shape)
    drawn += inside & (drawn >= right) & (count > 1)  # any cell but the right one
    elsewhere = generator.integers(count, size=right.shape)
    image = np.broadcast_to(np.arange(len(q))[:, None], right.shape)

    def cosine(of: Tensor, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        index = torch.from_numpy(cells)[:, :, None].expand(-1, -1, of.shape[2])
        return (q * of.gather(1, index)).sum(2).numpy()

    matched = cosine(k, np.where(inside, right, 0))
    return Similarities(
        matched[inside],
        image[inside],
        cosine(k, drawn).ravel(),
        cosine(k.roll(-1, 0), elsewhere).ravel(),
        image.ravel(),
    )


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float | None:
    """Percent of pairs (positive, negative) in which the positive one is higher, equals counting half: the area under
    the ROC curve. None where there is no such pair."""
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below, up_to = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float(100 * ((below + up_to) / 2).mean() / len(negative))


def standard_error(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float | None:
    """Of ``100 * part.sum() / whole.sum()`` over images drawn at random, whose cells go together.

    Args:
        part, whole: ``(images,)``, counts.
    """
    if len(whole) < 2 or not whole.sum():
        return None
    rest = part - whole * (part.sum() / whole.sum())
    return float(100 * np.sqrt(rest @ rest * len(whole) / (len(whole) - 1)) / whole.sum())
