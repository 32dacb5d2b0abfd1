"""Figures: training curves, bars of metrics, predicted masks. Object API only: nothing global is touched."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ssl_toolkit.reporting.compare import Comparison
from ssl_toolkit.reporting.masks import VOID, SegmentationExamples
from ssl_toolkit.reporting.runs import Column, RunFolder

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, safe for colour-blind readers, without the yellow, too faint on white."""

TITLES = {
    "lr": "learning rate",
    "knn_top1": "kNN accuracy, % (validation)",
    "linear_top1": "linear probe, % (validation)",
    "linear_view_top1": "linear probe, % (training views)",
    "match_location_overlap": "location matches inside both views, share",
    "match_location_pixels": "error of location matches, px",
    "match_feature_pixels": "error of feature matches, px",
    "match_location_duplicates": "location matches to the same cell, share",
    "match_feature_duplicates": "feature matches to the same cell, share",
    "match_agreement": "feature match is nearest cell, share",
    "match_agreement_1": "feature match within one cell, share",
    "pooled_rank": "effective rank of representations",
    "embedded_rank": "effective rank of embeddings",
    "pooled_std": "std of representations",
    "embedded_std": "std of embeddings",
    "pooled_spread": "relative spread of representations",
    "embedded_spread": "relative spread of embeddings",
    "pooled_correlation": "correlation of representations",
    "embedded_correlation": "correlation of embeddings",
    "waiting_share": "share of time waiting for data",
    "peak_memory_gib": "peak memory, GiB",
}
FIRST = ("loss", "knn_top1", "linear_top1", "linear_view_top1")
ALWAYS = ("loss", "lr", "images_per_second")
"""Drawn though they may not change."""

GROUPS = {
    "Loss and probes": FIRST,
    "Collapse monitors": ("pooled_", "embedded_"),
    "Terms of the loss": ("",),
    "Matches": ("match_",),
    "Optimization and speed": ("gradient_norm", "weight_decay", "lr", "images_per_second", "waiting_share", "peak_"),
}
"""Headings over curves, and how the names of their columns start; the longest start that fits decides."""

LAST = ("gradient_norm", "weight_decay", "lr", "images_per_second", "waiting_share", "peak_memory_gib")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (6, 1.5, 1.2, 1.5), (1.2, 1.2))
"""Dash patterns in line widths; empty is a solid line."""

MARKERS = "osD^vP*X"
LINE_WIDTH = 1.6
CLASS_COLOURS = (
    *("#24292f", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442"),
    *("#56B4E9", "#D55E00", "#882255", "#999933", "#8DD3A8"),
)
"""Background first, then the palette and four of Tol's muted colours: enough for ten classes."""

VOID_COLOUR = "#ffffff"
INK, FAINT = "#24292f", "#d0d7de"
DPI = 160
LOG_RATIO = 50.0
"""A curve whose largest value is this many times its smallest is drawn on a log axis."""

SMOOTH_FROM = 100
"""Curves with at least this many points get a running mean over their raw values."""


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address, so that a page holds it without a file beside it."""
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode("ascii")


def series_style(index: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dash pattern of run ``index``; both differ, so colour alone never carries the meaning."""
    return OKABE_ITO[index % len(OKABE_ITO)], DASHES[index % len(DASHES)]


def plain_axes(axes: Axes) -> None:
    """Thin grey frame on the left and below, small dark labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=FAINT)
    axes.set_axisbelow(True)


def curve_columns(runs: Sequence[RunFolder]) -> list[str]:
    """What there is to draw: loss and probes, the rest in the order logged, then rates and throughput. What never
    changes (no failed steps, a fixed weight decay) is left out."""

    def changes(name: str) -> bool:
        values = np.concatenate([run.curve(name)[1] for run in runs if name in run.metrics])
        return len(values) > 0 and (name in ALWAYS or len(np.unique(values)) > 1)

    names = dict.fromkeys(name for run in runs for name in run.metrics if name not in ("step", "epoch"))
    found = [name for name in names if changes(name)]
    last = [name for name in LAST if name in found]
    first = [name for name in FIRST if name in found]
    return [*first, *(name for name in found if name not in first + last), *last]


def curve_group(column: str) -> str:
    """The heading of `GROUPS` that ``column`` goes under."""
    fitting = [(len(start), name) for name, starts in GROUPS.items() for start in starts if column.startswith(start)]
    return max(fitting)[1]


def running_mean(values: Column, width: int) -> Column:
    """Centred mean over ``width`` points, over fewer at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def draw_curve(axes: Axes, runs: Sequence[RunFolder], column: str, styles: Sequence[int]) -> None:
    """``column`` over steps, a line for each run that logged it.

    Args:
        styles: for each run, its index in `series_style`.
    """
    plain_axes(axes)
    shown: list[Column] = []
    for run, style in zip(runs, styles):
        if column not in run.metrics:
            continue
        steps, values = run.curve(column)
        colour, dashes = series_style(style)
        smooth = column != "lr" and len(values) >= SMOOTH_FROM
        if smooth:
            axes.plot(steps, values, color=colour, lw=0.6, alpha=0.3)
            values = running_mean(values, max(5, len(values) // 40))
        marker = "o" if len(values) == 1 else ""
        axes.plot(steps, values, color=colour, lw=LINE_WIDTH, dashes=dashes, marker=marker, ms=4)
        shown.append(values)
    joined = np.concatenate(shown) if shown else np.zeros(1)
    log = joined.min() > 0 and joined.max() > LOG_RATIO * joined.min() and column != "lr"
    title = shorten(TITLES.get(column, column.replace("_", " ")), 42)
    axes.set_title(title + (", log scale" if log else ""), fontsize=10, color=INK, loc="left")
    if log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step", fontsize=8, color=INK)
    axes.grid(axis="y", color=FAINT, lw=0.5)


def curve_panel(runs: Sequence[RunFolder], column: str) -> Figure:
    """One column of ``metrics.csv`` of all ``runs``, without a legend."""
    figure = Figure(figsize=(3.4, 2.2), layout="constrained")
    draw_curve(figure.subplots(), runs, column, range(len(runs)))
    return figure


def metric_bars(comparison: Comparison, metric: int) -> Figure:
    """One metric of every run as bars from zero, the value at the end of each.

    Args:
        metric: position in ``comparison.metrics``.
    """
    values = comparison.values[:, metric]
    rows = np.arange(len(values))
    figure = Figure(figsize=(2.9, 0.45 + 0.28 * len(values)), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    heights = np.nan_to_num(values)
    axes.barh(rows, heights, color=[series_style(int(i))[0] for i in rows], height=0.68)
    for row, value in zip(rows, values):
        weight = "bold" if comparison.best[row, metric] else "normal"
        text = "no result" if math.isnan(value) else f" {value:.1f}"
        axes.text(
            0.0 if math.isnan(value) else float(value),
            float(row),
            text,
            va="center",
            size=8,
            color=INK,
            weight=weight,
        )
    axes.set_yticks(rows, [shorten(label, 18) for label in comparison.labels])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, max(float(heights.max()) * 1.18, 1.0))
    unit = "" if "(no %)" in comparison.metrics[metric].title else ", %"
    axes.set_title(shorten(comparison.metrics[metric].title, 30) + unit, fontsize=10, color=INK, loc="left")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False, left=False)
    return figure


def shorten(text: str, limit: int) -> str:
    """``text`` with its middle left out beyond ``limit`` characters; dollar signs never start maths."""
    if len(text) > limit:
        text = text[: limit // 2] + "…" + text[-(limit - limit // 2 - 1) :]
    return text.replace("$", r"\$")


def class_colours(count: int) -> NDArray[np.uint8]:
    """``(count, 3)`` RGB, background first; beyond `CLASS_COLOURS` the hues go round by the golden ratio."""
    known = [to_rgb(colour) for colour in CLASS_COLOURS[:count]]
    index = np.arange(len(known), count)
    hsv = np.stack([(index * 0.618034) % 1.0, 0.45 + 0.2 * (index % 3), 0.95 - 0.17 * (index % 4)], axis=-1)
    return np.round(np.concatenate([np.array(known).reshape(-1, 3), hsv_to_rgb(hsv)]) * 255).astype(np.uint8)


def colour_mask(mask: NDArray[np.integer], count: int) -> NDArray[np.uint8]:
    """Classes ``(..., H, W)`` as RGB ``(..., H, W, 3)``, void in white."""
    table = np.tile(np.array(to_rgb(VOID_COLOUR)) * 255, (VOID + 1, 1)).astype(np.uint8)
    table[:count] = class_colours(count)
    return table[mask]


def legend_entries(examples: SegmentationExamples, predictions: Sequence[NDArray] = ()) -> list[tuple[str, str]]:
    """``(class name, colour)`` of the classes that occur in the masks or predictions, background first."""
    present = set(np.unique(examples.mask).tolist())
    for prediction in [examples.prediction, *predictions]:
        present |= set(np.unique(prediction).tolist())
    colours = class_colours(len(examples.classes)) / 255
    entries = [(name, to_hex(colours[i])) for i, name in enumerate(examples.classes) if i in present]
    return [*entries, ("void", VOID_COLOUR)] if VOID in present else entries


def mask_grid(
    examples: SegmentationExamples,
    predictions: Mapping[str, NDArray] | None = None,
    columns: Sequence[int] | None = None,
    legend: bool = True,
) -> Figure:
    """Images, true masks and predicted masks, one example a column.

    Args:
        predictions: row title to ``(n, S, S)`` classes; the examples' own prediction by default.
        columns: which examples to show; the first eight by default.
        legend: name the classes below.
    """
    predictions = {"prediction": examples.prediction} if predictions is None else predictions
    chosen = list(range(min(8, len(examples.image)))) if columns is None else list(columns)
    count = len(examples.classes)
    rows = {"image": examples.image, "truth": colour_mask(examples.mask, count)}
    rows.update({name: colour_mask(values, count) for name, values in predictions.items()})
    entries = legend_entries(examples, list(predictions.values())) if legend else []
    side = 0.92
    figure = Figure(figsize=(side * len(chosen) + 0.3, side * len(rows) + 0.25 * math.ceil(len(entries) / 4)))
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    panels = figure.subplots(len(rows), len(chosen), squeeze=False)
    for line, (name, pictures) in zip(panels, rows.items()):
        for axes, index in zip(line, chosen):
            axes.imshow(pictures[index], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(FAINT)
        line[0].set_ylabel(shorten(name, 16), fontsize=8, color=INK)
    if entries:
        patches = [Patch(facecolor=colour, edgecolor=FAINT, label=shorten(name, 24)) for name, colour in entries]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure
