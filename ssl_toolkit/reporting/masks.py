"""Reading ``results/segmentation-<data>-examples.npz``: images with true and predicted masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.errors import UserError

VOID = 255
"""The pixel class that is not scored."""


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray]:
    """The arrays ``names`` of an ``.npz``, nothing unpickled.

    Raises:
        UserError: a file that is not an ``.npz``, or one without one of the arrays; names both.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise UserError(f"{path} has no array {missing[0]!r}; it has: {', '.join(archive.files)}")
            return {name: archive[name] for name in names}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise UserError(f"{path} is not a readable .npz: {' '.join(str(error).split())}") from error


@dataclass(frozen=True, eq=False)
class SegmentationExamples:
    """A few images with their masks.

    Attributes:
        title: the protocol and the data, from the file's name.
        image: ``(n, S, S, 3)`` uint8.
        mask: ``(n, S, S)`` true classes, `VOID` where not scored.
        prediction: ``(n, S, S)`` predicted classes.
        classes: names, background first.
    """

    title: str
    image: NDArray[np.uint8]
    mask: NDArray[np.integer]
    prediction: NDArray[np.integer]
    classes: tuple[str, ...]

    def same_images(self, other: SegmentationExamples) -> bool:
        """Whether ``other`` shows the same images with the same truth and classes."""
        return (
            self.classes == other.classes
            and np.array_equal(self.image, other.image)
            and np.array_equal(self.mask, other.mask)
        )


def read_examples(run: Path) -> list[SegmentationExamples]:
    """The examples of every data set a run was segmented on; none where the protocol has not run.

    Raises:
        UserError: a file that is broken, or whose shapes or classes do not fit together.
    """
    paths = sorted((run / "results").glob("segmentation*-examples.npz"))
    return [_read(path) for path in paths]


def _read(path: Path) -> SegmentationExamples:
    arrays = read_arrays(path, ("image", "mask", "prediction", "classes"))
    image, mask, prediction = arrays["image"], arrays["mask"], arrays["prediction"]
    if image.ndim != 4 or image.shape[-1] != 3 or image.dtype != np.uint8 or not len(image):
        raise UserError(f"{path}: image is {image.dtype} {image.shape}, expected uint8 (n, S, S, 3) with n > 0")
    classes = tuple(map(str, arrays["classes"].reshape(-1)))
    for name, values in {"mask": mask, "prediction": prediction}.items():
        if values.shape != image.shape[:3]:
            raise UserError(f"{path}: {name} is {values.shape} with images of {image.shape}")
        known = (values >= 0) & (values < len(classes)) | (values == VOID)
        if values.dtype.kind not in "iu" or not known.all():
            raise UserError(f"{path}: {name} must hold classes 0 to {len(classes) - 1}, or {VOID} for void")
    title = " on ".join(path.name.removesuffix("-examples.npz").rsplit("-", 1))
    return SegmentationExamples(title, image, mask, prediction, classes)
