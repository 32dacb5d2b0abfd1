"""True boxes: checked, and under the geometry of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssl_toolkit.data.base import Image, ImageDataset, Objects
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.metrics import Boxes, joined_boxes


def check_objects(datasets: Mapping[str, ImageDataset]) -> None:
    """Raise `UserError` for a split without objects, a label outside the classes, or a box that is none."""
    for split, dataset in datasets.items():
        classes = dataset.object_classes or ()
        found = 0
        for index in range(len(dataset)):
            objects = dataset.objects(index)
            found += int((~objects.ignore).sum())
            where = f"{dataset.name} {split}: an object of image {index}"
            wrong = objects.labels[(objects.labels < 0) | (objects.labels >= len(classes))]
            if len(wrong):
                raise UserError(
                    f"{where} has label {wrong[0]}, outside the {len(classes)} classes (0 to {len(classes) - 1})"
                )
            bad = objects.boxes[~_has_area(objects.boxes)]
            if len(bad):
                raise UserError(f"{where} has a box without area ({_written(bad[0])}): correct or remove it")
        if found == 0:
            raise UserError(f"{dataset.name}: its {split} split has no object to detect; use data that has some")


def _has_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _written(box: NDArray[np.float32]) -> str:
    return " ".join(f"{value:g}" for value in box.tolist())


def read_objects(dataset: ImageDataset, index: int, image: Image) -> Objects:
    """The objects of image ``index``, their boxes cut at the edges of ``image``.

    Raises:
        UserError: a box that lies outside the image.
    """
    objects = dataset.objects(index)
    height, width = image.shape[:2]
    boxes = objects.boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    outside = objects.boxes[~_has_area(boxes)]
    if len(outside):
        raise UserError(
            f"{dataset.name} {dataset.split}: the box {_written(outside[0])} of image {index} lies outside the image, "
            f"which is {width} wide and {height} high: correct or remove it"
        )
    return Objects(boxes, objects.labels, objects.ignore)


def true_boxes(dataset: ImageDataset) -> Boxes:
    """The objects of a whole split."""
    parts = []
    for index in range(len(dataset)):
        boxes, labels, ignore = dataset.objects(index)
        parts.append(Boxes(np.full(len(labels), index), boxes, labels, (~ignore).astype(np.float32)))
    return joined_boxes(parts)


def resized(image: Image, short: float, longest: float | None = None) -> tuple[Tensor, tuple[float, float]]:
    """An image with its shorter side ``short`` pixels long, the longer at most ``longest``.

    Returns:
        ``(C, H, W)`` of its type, and how many times wider and higher it is than before.
    """
    height, width = image.shape[:2]
    factor = short / min(height, width)
    if longest is not None:
        factor = min(factor, longest / max(height, width))
    shape = max(1, round(height * factor)), max(1, round(width * factor))
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if shape != (height, width):
        pixels = F.interpolate(pixels[None], shape, mode="bilinear", antialias=True)[0]
    return pixels, (shape[1] / width, shape[0] / height)


def scaled_boxes(boxes: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.float32]:
    """Boxes ``(n, 4)`` in an image that became ``scale`` times wider and higher."""
    return boxes * np.array([*scale, *scale], dtype=np.float32)


def flipped_boxes(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Boxes ``(n, 4)`` in the mirrored image of ``width`` pixels."""
    result = boxes.copy()
    result[:, 0], result[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return result


def cropped(objects: Objects, left: int, top: int, size: int) -> Objects:
    """The objects in the square of ``size`` pixels at ``left``, ``top``, in its pixels, cut at its edges.

    An object whose centre lies outside is to be ignored there (Liu et al., SSD, 2016, section 2.2, drops it), one that
    lies wholly outside is left out.
    """
    moved = objects.boxes - np.array([left, top, left, top], dtype=np.float32)
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    away = ((centre < 0) | (centre >= size)).any(1)
    cut = moved.clip(0, size)
    kept = _has_area(cut)
    return Objects(cut[kept], objects.labels[kept], (objects.ignore | away)[kept])
