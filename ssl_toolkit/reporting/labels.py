"""Names beside the points of a scatter plot, where they cover least."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ssl_toolkit.reporting.plots import INK

FONT, CHARACTER = 8.5, 0.56
"""Size of labels in points, and the width of a character as a share of it."""

PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a label may stand about its point, the best first: to the right."""

DISTANCES = (8, 16, 26)
"""Points between a point and its label, the best first."""

Pixels = NDArray[np.float64]


def label_points(axes: Axes, points: NDArray[np.float64], names: Sequence[str], ink: NDArray[np.float64]) -> None:
    """Write each name beside its point.

    The layout of the figure has to be final (`Figure.draw_without_rendering`), since places are found in pixels.

    Args:
        points: ``(n, 2)`` in data coordinates; those that are not finite are left out.
        names: one for each point; an empty one is left out.
        ink: ``(m, 2)`` in data coordinates, what else a name should not cover; sampled along its lines.
    """
    scale = axes.figure.dpi / 72
    shown = [i for i, point in enumerate(points) if np.isfinite(point).all()]
    taken: Pixels = axes.transData.transform(np.concatenate([points[shown], ink]))
    frame = np.asarray(axes.get_window_extent())
    for i in shown:
        if not names[i]:
            continue
        at = axes.transData.transform(points[i])
        size = np.array([len(names[i]) * CHARACTER, 1.1]) * FONT * scale
        offset, box = _place(at, size, scale, taken, frame)
        side = np.sign(np.round(offset, 6)).astype(int)
        axes.annotate(
            names[i], tuple(points[i]), offset, textcoords="offset points", size=FONT, color=INK,
            ha=("right", "center", "left")[side[0] + 1], va=("top", "center", "bottom")[side[1] + 1],
        )  # fmt: skip
        taken = np.concatenate([taken, box])


def _place(at: Pixels, size: Pixels, scale: float, taken: Pixels, frame: Pixels) -> tuple[tuple[float, float], Pixels]:
    """The offset in points at which a label of ``size`` covers least of ``taken``, and pixels all over its box."""
    best, least, corner = (0.0, 0.0), math.inf, at
    for far in DISTANCES:
        for place in PLACES:
            offset = np.array(place) * (far if 0 in place else 0.8 * far)
            low = at + offset * scale + (np.array(place) - 1) * size / 2
            covered = ((taken > low - 1) & (taken < low + size + 1)).all(1).sum()
            outside = bool((low < frame[0]).any() or (low + size > frame[1]).any())
            cost = covered + 100 * outside + 0.1 * far
            if cost < least:
                best, least, corner = (float(offset[0]), float(offset[1])), cost, low
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 4)), -1).reshape(-1, 2)
    return best, corner + grid * size
