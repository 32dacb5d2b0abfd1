"""A study as a picture: classification against segmentation, ours beside the paper's."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_toolkit.reporting.labels import label_points
from ssl_toolkit.reporting.plots import FAINT, INK, MARKERS, plain_axes, series_style, shorten
from ssl_toolkit.reproduction.studies import COLUMNS
from ssl_toolkit.reproduction.summary import Summary

AXES = ("classification", "segmentation")
Points = NDArray[np.float64]
"""``(rows, 4)``: classification, segmentation, and the standard error of each; nan where there is none."""


def trade_off_figure(summary: Summary) -> Figure | None:
    """Mean top-1 and mIoU of each row with their standard errors, and the paper's in a second panel where it has them:
    Figure 2 of the VICRegL paper. None without results of both kinds, or where there is nothing to compare.
    """
    rows = summary.study.rows
    if len(rows) < 2 or not set(AXES) <= set(summary.study.columns):
        return None
    means = [[summary.mean(row.name, column) for column in AXES] for row in rows]
    ours = np.array([[x.mean, y.mean, x.error, y.error] for x, y in means])
    paper = np.array([[*(row.paper.get(column, math.nan) for column in AXES), math.nan, math.nan] for row in rows])
    if not _there(ours):
        return None
    seeds = len(summary.seeds)
    panels = [(f"ours, {summary.scale}: mean of {seeds} seeds ± standard error" if seeds > 1 else "ours, 1 seed", ours)]
    panels += [("paper", paper)] if _there(paper) else []
    figure = Figure(figsize=(4.6 * len(panels), 3.9))
    figure.set_layout_engine("constrained", wspace=0.06)
    figure.suptitle(shorten(summary.study.title, 60), fontsize=11, color=INK, x=0.01, ha="left")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, points) in zip(every, panels):
        _draw(axes, points, summary.study.joined)
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.set_xlabel(f"classification: {COLUMNS[AXES[0]]}, %", fontsize=9, color=INK)
        axes.set_ylabel(f"segmentation: {COLUMNS[AXES[1]]}, %", fontsize=9, color=INK)
    figure.draw_without_rendering()  # places of labels are found in pixels
    for axes, (_, points) in zip(every, panels):
        label_points(axes, points[:, :2], [shorten(row.name, 28) for row in rows], _ink(points, summary.study.joined))
    return figure


def _there(points: Points) -> list[int]:
    """Rows that have both numbers."""
    return [i for i, point in enumerate(points) if np.isfinite(point[:2]).all()]


def _draw(axes: Axes, points: Points, joined: bool) -> None:
    """A point with its error bars for each row, and a line through them where ``joined``."""
    plain_axes(axes)
    axes.grid(color=FAINT, lw=0.4)
    kept = points[_there(points)]
    if joined:
        axes.plot(kept[:, 0], kept[:, 1], color="#8c959f", lw=1.2, zorder=1)
    for i in _there(points):
        x, y, *errors = points[i]
        dx, dy = (error if np.isfinite(error) else None for error in errors)
        colour, marker = series_style(i)[0], MARKERS[i % len(MARKERS)]
        axes.errorbar(x, y, dy, dx, color=colour, lw=1.1, capsize=2.5, fmt=marker, ms=7, mec="white", mew=0.6, zorder=2)
    axes.margins(0.22)


def _ink(points: Points, joined: bool) -> NDArray[np.float64]:
    """What a name should not cover beside the points: error bars, and the line that joins points."""
    kept = points[_there(points)]
    steps = np.linspace(-1, 1, 25)
    bars = [row[:2] + np.outer(steps, np.nan_to_num(row[2:]) * axis) for row in kept for axis in np.eye(2)]
    lines = [a[:2] + np.outer((steps + 1) / 2, b[:2] - a[:2]) for a, b in pairwise(kept)] if joined else []
    return np.concatenate([*bars, *lines])
