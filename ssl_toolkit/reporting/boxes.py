"""True and predicted boxes of a few images, as ``ssl-toolkit eval detection`` keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.masks import read_arrays
from ssl_toolkit.reporting.plots import FAINT, INK, OKABE_ITO, shorten

SUFFIX = "-examples.npz"
SHOWN_SCORE = 0.3
"""Of a predicted box from which it is drawn; where none of an image reaches it, its best one is."""

TRUE, PREDICTED = "#ffffff", OKABE_ITO[4]


@dataclass(frozen=True, eq=False)
class BoxExamples:
    """A few images with the boxes of their objects.

    Attributes:
        title: the protocol and the data, from the file's name.
        image: ``(n, S, S, 3)`` uint8.
        true: ``(m, 6)``: which image, class, ``x0, y0, x1, y1`` in its pixels.
        predicted: ``(p, 7)``: the same and the score.
        classes: names.
    """

    title: str
    image: NDArray[np.uint8]
    true: NDArray[np.float32]
    predicted: NDArray[np.float32]
    classes: tuple[str, ...]

    def shown(self, image: int) -> NDArray[np.float32]:
        """Predicted boxes of an image that are drawn, the most certain first."""
        rows = self.predicted[self.predicted[:, 0] == image]
        rows = rows[np.argsort(-rows[:, 6], kind="stable")]
        return rows[: max(1, int((rows[:, 6] >= SHOWN_SCORE).sum()))]


def read_boxes(run: Path) -> list[BoxExamples]:
    """The examples of every detection result of a run.

    Raises:
        UserError: a file that is broken, or whose shapes do not fit together.
    """
    return [_read(path) for path in sorted((run / "results").glob(f"detection*{SUFFIX}"))]


def _read(path: Path) -> BoxExamples:
    arrays = read_arrays(path, ("image", "true", "predicted", "classes"))
    image, true, predicted = arrays["image"], arrays["true"], arrays["predicted"]
    if image.ndim != 4 or image.shape[-1] != 3 or image.dtype != np.uint8 or not len(image):
        raise UserError(f"{path}: image is {image.dtype} {image.shape}, expected uint8 (n, S, S, 3) with n > 0")
    classes = tuple(map(str, arrays["classes"].reshape(-1)))
    for name, rows, width in (("true", true, 6), ("predicted", predicted, 7)):
        if rows.ndim != 2 or rows.shape[1] != width:
            raise UserError(f"{path}: {name} is {rows.shape}, expected rows of {width} numbers")
        if len(rows) and not (
            rows[:, :2].min() >= 0 and rows[:, 0].max() < len(image) and rows[:, 1].max() < len(classes)
        ):
            raise UserError(f"{path}: {name} names an image or a class that is not there")
    return BoxExamples(" on ".join(path.name.removesuffix(SUFFIX).rsplit("-", 1)), image, true, predicted, classes)


def box_figure(examples: BoxExamples, columns: range) -> Figure:
    """Images with their true boxes (white, dashed) above the same with the predicted ones, named and scored."""
    count = len(columns)
    figure = Figure(figsize=(1.7 * count + 0.3, 3.65))
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    panels = figure.subplots(2, count, squeeze=False)
    for column, index in enumerate(columns):
        for row, axes in enumerate(panels[:, column]):
            axes.imshow(examples.image[index], interpolation="nearest", extent=(0, *examples.image.shape[1:3], 0))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(FAINT)
            if row == 0:
                for box in examples.true[examples.true[:, 0] == index]:
                    _draw(axes, box[2:6], TRUE, "--", examples.classes[int(box[1])])
            else:
                for box in examples.shown(index):
                    _draw(axes, box[2:6], PREDICTED, "-", f"{examples.classes[int(box[1])]} {box[6]:.2f}")
    for name, axes in zip(("truth", "predicted"), panels[:, 0]):
        axes.set_ylabel(name, fontsize=8, color=INK)
    return figure


def _draw(axes: Axes, box: NDArray[np.float32], colour: str, style: str, text: str) -> None:
    x0, y0, x1, y1 = map(float, box)
    halo = [withStroke(linewidth=2.4, foreground="black")]
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, ls=style, lw=1.3, path_effects=halo))
    axes.text(
        x0 + 1, y0 + 1, shorten(text, 18), color=colour, size=7, va="top", clip_on=True,
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip
