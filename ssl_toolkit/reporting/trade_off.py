"""Classification against segmentation of several runs, Figure 2 of the VICRegL paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_toolkit.reporting.compare import Comparison
from ssl_toolkit.reporting.labels import label_points
from ssl_toolkit.reporting.plots import FAINT, INK, MARKERS, plain_axes, series_style, shorten

TRADE_OFF = (("linear_augmented", "linear", "knn"), ("segmentation_augmented", "segmentation"))
"""Protocols of the two sides of the trade-off, best first; each stands for its first metric."""


def trade_off_columns(comparison: Comparison) -> tuple[int, int] | None:
    """Columns of the classification and segmentation metric to plot; None where runs do not have both."""
    chosen = []
    for protocols in TRADE_OFF:
        found = [
            i
            for protocol in protocols
            for i, metric in enumerate(comparison.metrics)
            if metric.protocol == protocol and np.isfinite(comparison.values[:, i]).sum() > 1
        ]
        if not found:
            return None
        chosen.append(found[0])
    return chosen[0], chosen[1]


def pareto_front(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of ``points`` ``(n, 2)`` no other one beats in both, from the first coordinate's lowest to its highest."""
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    best = -np.inf
    front = []
    for index in order:
        if np.isfinite(points[index]).all() and points[index, 1] > best:
            best = points[index, 1]
            front.append(index)
    return np.array(front[::-1], dtype=np.intp)


def trade_off(comparison: Comparison, columns: tuple[int, int]) -> Figure:
    """Classification against segmentation, a point for each run and a line through those that no other beats in both:
    Figure 2 of the VICRegL paper.

    Args:
        columns: from `trade_off_columns`.
    """
    points = comparison.values[:, columns]
    front = pareto_front(points)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    axes.step(points[front, 0], points[front, 1], where="pre", color=FAINT, lw=1.4, zorder=1)
    for i, (x, y) in enumerate(points):
        if np.isfinite([x, y]).all():
            axes.scatter(x, y, s=46, color=series_style(i)[0], marker=MARKERS[i % len(MARKERS)], zorder=2)
    axes.margins(0.2)
    axes.set_xlabel(comparison.metrics[columns[0]].title + ", %", fontsize=9, color=INK)
    axes.set_ylabel(comparison.metrics[columns[1]].title + ", %", fontsize=9, color=INK)
    axes.grid(color=FAINT, lw=0.4)
    figure.draw_without_rendering()  # places of labels are found in pixels
    label_points(axes, points, _names(comparison.labels, points), np.empty((0, 2)))
    return figure


def _names(labels: Sequence[str], points: NDArray[np.float64]) -> list[str]:
    """Of runs at the same point, the first has the names of all."""
    same = [[label for label, other in zip(labels, points) if np.array_equal(other, point)] for point in points]
    return [", ".join(shorten(each, 22) for each in s) if s[:1] == [label] else "" for s, label in zip(same, labels)]
