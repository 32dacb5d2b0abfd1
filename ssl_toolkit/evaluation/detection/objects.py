"""True boxes: checked, and under the geometry of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssl_toolkit.data.base import Image, ImageDataset, Objects
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.metrics import Boxes, joined_boxes, run_lengths
from ssl_toolkit.progress import progress_bar


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


def check_instance_masks(name: str, datasets: Mapping[str, ImageDataset]) -> None:
    """Raise `UserError` for a split without instance masks, or whose masks cannot be read (all of them on COCO)."""
    for split, dataset in datasets.items():
        if not dataset.has_instance_masks:
            raise UserError(
                f"{name}.masks=true needs a mask of each object: the {split} split of {dataset.name} has none; set "
                f"{name}.masks=false or take data=coco"
            )
        masks, objects = len(dataset.instance_masks(0)), len(dataset.objects(0).labels)
        if masks != objects:
            raise UserError(f"{dataset.name} {split}: image 0 has {objects} objects and {masks} masks")


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


def read_instance_masks(dataset: ImageDataset, index: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks of the objects of image ``index``, ``(n, H, W)``.

    Raises:
        UserError: the image has another ``shape``, height and width.
    """
    masks = dataset.instance_masks(index)
    _check_size(dataset, index, masks.shape[1:], shape)
    return masks


def check_mask_sizes(dataset: ImageDataset, truth: Boxes, found: Boxes) -> None:
    """Raise `UserError` where the masks of ``truth`` and ``found`` in an image differ in size."""
    if truth.masks is None or found.masks is None:
        return
    sizes = dict(zip(truth.image.tolist(), (run["size"] for run in truth.masks)))
    for index, run in zip(found.image.tolist(), found.masks):
        _check_size(dataset, index, sizes.get(index, run["size"]), run["size"])


def _check_size(dataset: ImageDataset, index: int, annotated: Sequence[int], shape: Sequence[int]) -> None:
    if list(annotated) != list(shape):
        raise UserError(
            f"{dataset.name} {dataset.split}: the masks of image {index} are {annotated[1]} wide and {annotated[0]} "
            f"high, the image is {shape[1]} wide and {shape[0]} high: correct its size in the annotations"
        )


def true_masks(dataset: ImageDataset) -> Boxes:
    """The objects of a whole split with their masks."""
    truth, runs = true_boxes(dataset), []
    with progress_bar(f"true masks of {dataset.split}", len(dataset)) as bar:
        for index in range(len(dataset)):
            runs.append(run_lengths(dataset.instance_masks(index)))
            bar.advance()
    return dataclasses.replace(truth, masks=np.concatenate(runs))


def resized_masks(masks: NDArray[np.bool_], shape: tuple[int, int]) -> Tensor:
    """Masks ``(n, H, W)`` in an image of another ``shape``, uint8: each pixel has the value where its centre was."""
    pixels = torch.from_numpy(masks.astype(np.uint8))
    if tuple(pixels.shape[1:]) == shape or len(pixels) == 0:
        return pixels if len(pixels) else pixels.new_zeros((0, *shape))
    return F.interpolate(pixels[None], shape, mode="nearest-exact")[0]


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
