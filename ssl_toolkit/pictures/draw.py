"""Figures of what `ssl_toolkit.pictures.compute` found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_toolkit.reporting.matches import KINDS, MatchExample, describe, draw_matches, error_limit
from ssl_toolkit.reporting.plots import FAINT, INK, MARKERS, OKABE_ITO, shorten

SIDE = 1.5
"""Inches of an image."""

COLUMNS = 6
HEAT = "cividis"
"""Of one lightness order, and the same to colour-blind readers."""


def _grid(images: int, rows: int, title: str, extra: float = 0.0) -> tuple[Figure, NDArray]:
    """Axes for ``rows`` pictures of each of ``images``, in bands of `COLUMNS`; ``(bands * rows, columns)``."""
    columns, bands = min(images, COLUMNS), math.ceil(images / COLUMNS)
    figure = Figure(figsize=(SIDE * columns + 0.1 + extra, SIDE * rows * bands + 0.35))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure.suptitle(shorten(title, 90), fontsize=9, color=INK, x=0.01, ha="left")
    axes = figure.subplots(rows * bands, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    return figure, axes


def _place(axes: NDArray, image: int, row: int, rows: int) -> Axes:
    found: Axes = axes[(image // COLUMNS) * rows + row, image % COLUMNS]
    return found


def pca_figure(images: NDArray[np.uint8], colours: NDArray[np.float64], title: str) -> Figure:
    """Each image above its map in colour.

    Args:
        images: ``(n, S, S, 3)``; ``colours`` ``(n, H, W, 3)`` of `pca_colours`.
    """
    figure, axes = _grid(len(images), 2, title)
    for i, (image, colour) in enumerate(zip(images, colours)):
        _place(axes, i, 0, 2).imshow(image, interpolation="nearest")
        _place(axes, i, 1, 2).imshow(colour, interpolation="nearest")
    return figure


def similarity_figure(
    images: NDArray[np.uint8], similar: NDArray[np.float64], cell: tuple[int, int], title: str
) -> Figure:
    """Each image above its similarity to the marked cell of the first one.

    Args:
        images: ``(n, S, S, 3)``; ``similar`` ``(n, H, W)`` and ``cell`` of `similarity`.
    """
    figure, axes = _grid(len(images), 2, title, extra=0.5)
    side = images.shape[1]
    height, width = similar.shape[1:]
    low = min(0.0, float(similar.min()))
    for i, (image, values) in enumerate(zip(images, similar)):
        _place(axes, i, 0, 2).imshow(image, interpolation="nearest", extent=(0, side, side, 0))
        heat = _place(axes, i, 1, 2).imshow(
            values, cmap=HEAT, vmin=low, vmax=1, interpolation="nearest", extent=(0, side, side, 0)
        )
    x, y = (cell[1] + 0.5) * side / width, (cell[0] + 0.5) * side / height
    for row in (0, 1):
        panel = _place(axes, 0, row, 2)
        panel.plot(x, y, marker="o", ms=9, mfc="none", mec="white", mew=3)
        panel.plot(x, y, marker="o", ms=9, mfc="none", mec=OKABE_ITO[1], mew=1.6)
    bar = figure.colorbar(heat, ax=axes, fraction=0.04, pad=0.01)
    bar.set_label("cosine similarity", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def map_figure(
    points: NDArray[np.float64], labels: NDArray[np.int64] | None, classes: Sequence[str] | None, title: str
) -> Figure:
    """Images as points, a colour and a marker for each class.

    Args:
        points: ``(n, 2)`` of `image_map`.
        labels: ``(n,)`` positions in ``classes``, or None where there are none.
    """
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(shorten(title, 80), fontsize=9, color=INK, loc="left")
    if labels is None or classes is None:
        axes.scatter(points[:, 0], points[:, 1], s=12, color=OKABE_ITO[0], lw=0)
    else:
        for label in np.unique(labels):
            here = labels == label
            axes.scatter(
                points[here, 0],
                points[here, 1],
                s=16,
                lw=0,
                alpha=0.85,
                color=OKABE_ITO[label % len(OKABE_ITO)],
                marker=MARKERS[(label // len(OKABE_ITO)) % len(MARKERS)],
                label=shorten(classes[label], 24),
            )
        if len(np.unique(labels)) <= len(OKABE_ITO) * len(MARKERS):
            figure.legend(
                loc="outside right upper", fontsize=8, frameon=False, labelcolor=INK, ncols=1 + (len(classes) > 30)
            )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def matches_figure(examples: Sequence[MatchExample], count: int, title: str) -> Figure:
    """For each image its matches by location and by feature, one colour scale for all."""
    figure = Figure(figsize=(8.6, 4.35 * len(examples) + 0.3), layout="constrained")
    figure.suptitle(shorten(title, 90), fontsize=9, color=INK, x=0.01, ha="left")
    blocks = figure.subfigures(len(examples), len(KINDS), squeeze=False)
    limit = error_limit(examples, count)
    for line, example in zip(blocks, examples):
        for block, kind in zip(line, KINDS):
            draw_matches(block, example, kind, count, limit)
            block.supxlabel(describe(example, kind, count).split(" over the ")[0], fontsize=8, color=INK)
    return figure
