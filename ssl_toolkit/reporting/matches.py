"""Which local feature was matched with which, drawn as in Figures 3 to 5 of the VICRegL paper.

The colour of a match is its true error: how far apart its two cells lie in the seed image, in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Curve
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.masks import read_arrays
from ssl_toolkit.reporting.plots import INK

Kind = Literal["location", "feature"]
KINDS: tuple[Kind, Kind] = ("location", "feature")

VIEW_COLOURS = ("#D55E00", "#0072B2")
"""Views a and b: the paper's red and blue, in shades that colour-blind readers can tell apart."""

COLOUR_MAP = "viridis"
FRAMES = ("-", (0, (4, 2)))
"""Line styles of views a and b."""

GAP = 0.22
"""Space between the views, where a view is 1 wide."""

BLOCK_SIZE = (4.2, 4.25)
"""Inches of one block: legible from 330 pixels of width on."""


@dataclass(frozen=True, eq=False)
class Matches:
    """For each raster cell of view a, its match in view b; all ``(h * w,)``.

    Attributes:
        index: matched raster cell of view b.
        distance: what the matching minimised: pixels by location, embedding distance by feature.
        kept: whether the match is among the top gamma.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    kept: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class MatchExample:
    """A seed image, two views of it and how their cells were matched.

    Attributes:
        seed: ``(H, W, 3)`` uint8.
        views: two ``(S, S, 3)`` uint8, as the network saw them (mirrored if flipped).
        boxes: ``(2, 4)`` XYXY, pixels of the seed.
        flips: ``(2,)`` bool.
        grid: height and width of the feature map.
        matches: by location and by feature.
    """

    seed: NDArray[np.uint8]
    views: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]
    grid: tuple[int, int]
    matches: dict[Kind, Matches]

    def centres(self, view: int) -> NDArray[np.float64]:
        """``(h * w, 2)``, see `cell_centres`."""
        return cell_centres(self.boxes[view], bool(self.flips[view]), self.grid)

    def errors(self, kind: Kind) -> NDArray[np.float64]:
        """``(h * w,)``, pixels of the seed between each cell of view a and its match in view b."""
        return np.linalg.norm(self.centres(0) - self.centres(1)[self.matches[kind].index], axis=-1)

    def best(self, kind: Kind, count: int = 10) -> NDArray[np.int64]:
        """Cells of view a with the ``count`` closest kept matches, the closest first."""
        matches = self.matches[kind]
        order = np.argsort(np.where(matches.kept, matches.distance, np.inf), kind="stable")
        return order[: min(count, int(matches.kept.sum()))]


def cell_centres(box: NDArray[np.floating], flip: bool, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Where the cells of a feature map lie in the seed image.

    Args:
        box: ``(4,)`` XYXY of the crop, pixels of the seed.
        flip: whether the crop was mirrored left to right; x then runs the other way.
        grid: height and width of the feature map.

    Returns:
        ``(h * w, 2)`` x and y in raster order: the centre of each cell's rectangle in the crop.
    """
    height, width = grid
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
    xs = x0 + (np.arange(width) + 0.5) * (x1 - x0) / width
    ys = y0 + (np.arange(height) + 0.5) * (y1 - y0) / height
    if flip:
        xs = xs[::-1]
    return np.stack([np.tile(xs, height), np.repeat(ys, width)], axis=-1)


def read_matches(path: Path) -> list[MatchExample]:
    """The examples of an ``examples/matches.npz``.

    Raises:
        UserError: a file that is broken, lacks an array, or whose shapes do not fit together.
    """
    names = ["view_a", "view_b", "box_a", "box_b", "flip_a", "flip_b", "grid"]
    names += [f"{kind}{part}" for kind in KINDS for part in ("", "_distance", "_kept")]
    arrays = read_arrays(path, names)
    count = len(arrays["view_a"])
    arrays.update(read_arrays(path, [f"seed_{i}" for i in range(count)]))
    if arrays["grid"].shape != (2,):
        raise UserError(f"{path}: grid is {arrays['grid'].shape}, expected two numbers, height and width")
    height, width = map(int, arrays["grid"])
    shapes: dict[str, tuple[int, ...]] = {f"box_{v}": (count, 4) for v in "ab"}
    shapes.update({f"flip_{v}": (count,) for v in "ab"})
    shapes.update({name: (count, height * width) for name in names if name.startswith(KINDS)})
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(f"{path}: {name} is {arrays[name].shape}, expected {shape}")
    for name in ["view_a", "view_b", *(f"seed_{i}" for i in range(count))]:
        if arrays[name].shape[-1:] != (3,) or arrays[name].ndim != (3 if name.startswith("seed") else 4):
            raise UserError(f"{path}: {name} is {arrays[name].shape}, expected RGB images")
    for kind in KINDS:
        if arrays[kind].size and not 0 <= arrays[kind].min() <= arrays[kind].max() < height * width:
            raise UserError(f"{path}: {kind} must hold cells 0 to {height * width - 1}")
    return examples_of(arrays)


def examples_of(arrays: Mapping[str, NDArray]) -> list[MatchExample]:
    """The examples in arrays that are known to fit together."""
    height, width = map(int, arrays["grid"])
    return [_example(arrays, i, (height, width)) for i in range(len(arrays["view_a"]))]


def _example(arrays: Mapping[str, NDArray], i: int, grid: tuple[int, int]) -> MatchExample:
    def matches(kind: Kind) -> Matches:
        index, distance = arrays[kind][i].astype(np.int64), arrays[f"{kind}_distance"][i].astype(np.float64)
        return Matches(index, distance, arrays[f"{kind}_kept"][i].astype(bool))

    return MatchExample(
        seed=arrays[f"seed_{i}"],
        views=(arrays["view_a"][i], arrays["view_b"][i]),
        boxes=np.stack([arrays["box_a"][i], arrays["box_b"][i]]).astype(np.float64),
        flips=np.array([arrays["flip_a"][i], arrays["flip_b"][i]], dtype=bool),
        grid=grid,
        matches={kind: matches(kind) for kind in KINDS},
    )


def error_limit(examples: Sequence[MatchExample], count: int = 10) -> float:
    """Top of a colour scale that fits every match shown of ``examples``, in pixels of the seed."""
    errors = [example.errors(kind)[example.best(kind, count)] for example in examples for kind in KINDS]
    return max(1.0, float(np.ceil(max((e.max() for e in errors if len(e)), default=1.0))))


def draw_matches(figure: Figure | SubFigure, example: MatchExample, kind: Kind, count: int, limit: float) -> None:
    """Views a and b with the ``count`` best matches of ``kind`` as arcs between their cells; seed below."""
    norm = Normalize(0, limit)
    cells = example.best(kind, count)
    chosen = (cells, example.matches[kind].index[cells])
    colours = colormaps[COLOUR_MAP](norm(example.errors(kind)[cells]))
    panels = figure.subplot_mosaic(
        [["views", "views"], ["seed", "scale"]], width_ratios=(1, 1), height_ratios=(1.28, 1)
    )
    _draw_views(panels["views"], example, chosen, colours)
    panels["views"].set_title(f"matched by {kind}", fontsize=10, color=INK, loc="left", pad=1)
    _draw_seed(panels["seed"], example, chosen, colours)
    _draw_scale(figure, panels["scale"], norm)


def _draw_scale(figure: Figure | SubFigure, axes: Axes, norm: Normalize) -> None:
    """The colour bar and what the markers stand for."""
    axes.set_axis_off()
    inset = axes.inset_axes((0.04, 0.62, 0.92, 0.07))
    bar = figure.colorbar(ScalarMappable(norm, COLOUR_MAP), cax=inset, orientation="horizontal")
    bar.ax.set_title("true position error,\npixels of the seed", fontsize=8, color=INK, loc="left")
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar.outline.set_visible(False)  # type: ignore[operator]
    markers = [
        Line2D([], [], marker=marker, ls="", color="#5b6570", mec="white", ms=5, label=label)
        for marker, label in (("o", "cell of view a"), ("s", "its match in view b"))
    ]
    axes.legend(handles=markers, loc=(0, 0.14), fontsize=8, frameon=False, labelcolor=INK, handletextpad=0.2)


def _draw_views(axes: Axes, example: MatchExample, chosen: tuple[NDArray, NDArray], colours: NDArray) -> None:
    """Both views with their cell grids, framed in the colour of their crop, an arc for each match."""
    rows, columns = example.grid
    ends = []
    for view, cells in enumerate(chosen):
        left = view * (1 + GAP)
        axes.imshow(example.views[view], extent=(left, left + 1, 1, 0), interpolation="nearest", zorder=0)
        axes.vlines(left + np.arange(1, columns) / columns, 0, 1, color="white", lw=0.5, alpha=0.5)
        axes.hlines(np.arange(1, rows) / rows, left, left + 1, color="white", lw=0.5, alpha=0.5)
        colour = VIEW_COLOURS[view]
        axes.add_patch(Rectangle((left, 0), 1, 1, fill=False, ec=colour, ls=FRAMES[view], lw=1.8))
        title = f"view {'ab'[view]}" + (" (mirrored)" if example.flips[view] else "")
        axes.text(left + 0.5, 1.03, title, ha="center", va="top", fontsize=8, color=colour)
        ends.append(np.stack([left + (cells % columns + 0.5) / columns, (cells // columns + 0.5) / rows], axis=-1))
    _draw_arcs(axes, ends, colours, bend=0.13)
    axes.set(xlim=(-0.01, 2 + GAP + 0.01), ylim=(1.12, -0.07), aspect="equal")
    axes.set_axis_off()


def _draw_seed(axes: Axes, example: MatchExample, chosen: tuple[NDArray, NDArray], colours: NDArray) -> None:
    """The seed with both crops and both true positions of every match, joined by a line: the error."""
    height, width = example.seed.shape[:2]
    axes.imshow(example.seed, extent=(0, width, height, 0), interpolation="nearest", zorder=0)
    for box, colour, style in zip(example.boxes, VIEW_COLOURS, FRAMES):
        corner, size = (box[0], box[1]), (box[2] - box[0], box[3] - box[1])
        axes.add_patch(Rectangle(corner, *size, fill=False, ec="white", lw=2.6))
        axes.add_patch(Rectangle(corner, *size, fill=False, ec=colour, lw=1.4, ls=style))
    _draw_arcs(axes, [example.centres(view)[cells] for view, cells in enumerate(chosen)], colours, bend=0.0)
    pad = 0.01 * max(height, width)
    axes.set(xlim=(-pad, width + pad), ylim=(height * 1.1, -pad), aspect="equal", anchor="W")
    axes.text(width / 2, height * 1.03, "seed image", ha="center", va="top", fontsize=8, color=INK)
    axes.set_axis_off()


def _draw_arcs(axes: Axes, ends: Sequence[NDArray], colours: NDArray, bend: float) -> None:
    """A line from each point of ``ends[0]`` (circle) to its partner in ``ends[1]`` (square).

    Bent, because the matches of one row of cells would otherwise hide each other.
    """
    start, end = ends
    middle = (start + end) / 2 + bend * (end - start)[:, ::-1] * (1, -1)
    curve = (Curve.MOVETO, Curve.CURVE3, Curve.CURVE3)
    paths = [Curve(points, curve) for points in np.stack([start, middle, end], axis=1)]
    halo = [withStroke(linewidth=2.8, foreground="white")]
    axes.add_collection(
        PathCollection(
            paths,
            facecolors="none",
            edgecolors=colours,
            linewidths=1.4,
            path_effects=halo,
            zorder=3,
            clip_on=False,
        )
    )
    for points, marker in zip(ends, "os"):
        axes.scatter(points[:, 0], points[:, 1], c=colours, s=17, marker=marker, ec="white", lw=0.7, zorder=4)


def match_figure(example: MatchExample, kind: Kind, count: int = 10, limit: float | None = None) -> Figure:
    """One block: the best matches of one kind between the two views, and the seed with both crops.

    Args:
        count: how many of the closest kept matches to draw.
        limit: top of the colour scale in pixels of the seed; by default it fits this example.
    """
    figure = Figure(figsize=BLOCK_SIZE, layout="constrained")
    draw_matches(figure, example, kind, count, limit or error_limit([example], count))
    return figure


def describe(example: MatchExample, kind: Kind, count: int = 10) -> str:
    """The figure in a sentence: mean true error of the matches drawn, of all kept ones, and a cell's size."""
    errors, best = example.errors(kind), example.best(kind, count)
    if not len(best):
        return f"No match by {kind} is among the top gamma."
    kept = errors[example.matches[kind].kept]
    cell = (example.boxes[0, 2:] - example.boxes[0, :2]) / np.array(example.grid[::-1])
    return (
        f"Mean true error {errors[best].mean():.1f} px over the {len(best)} drawn, {kept.mean():.1f} px over "
        f"all {len(kept)} kept; a cell of view a is {cell[0]:.1f} x {cell[1]:.1f} px."
    )


def mean_errors(examples: Sequence[MatchExample]) -> dict[str, float]:
    """Mean true error in pixels over the kept matches of all examples.

    Returns:
        ``location`` (the floor that the grid allows), ``feature``, and ``chance``: every cell of view a
        with every cell of view b, what features that know nothing would give.
    """
    errors: dict[str, NDArray] = {
        kind: np.concatenate([example.errors(kind)[example.matches[kind].kept] for example in examples])
        for kind in KINDS
    }
    errors["chance"] = np.concatenate(
        [np.linalg.norm(e.centres(0)[:, None] - e.centres(1), axis=-1).ravel() for e in examples]
    )
    return {name: float(values.mean()) if len(values) else float("nan") for name, values in errors.items()}
