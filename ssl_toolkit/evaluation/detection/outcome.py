"""What both detection protocols report alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.transforms import as_rgb
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.metrics import IOUS, RULES, Boxes, summary
from ssl_toolkit.evaluation.detection.objects import resized, scaled_boxes, true_boxes
from ssl_toolkit.evaluation.heads import edge_note
from ssl_toolkit.evaluation.protocol import Outcome, best_setting, missing_classes
from ssl_toolkit.evaluation.segmentation.options import spread

Tables = Sequence[NDArray[np.float64]]
"""AP of each detector, ``(10, classes)``, as `average_precision` gives it."""


def chosen_rule(rule: str | None, dataset: ImageDataset) -> str:
    """``rule``, or what is usual: that of its year for VOC (as in Detectron2), COCO's for anything else."""
    if rule is not None:
        return rule
    if dataset.name == "voc":
        return "voc2007" if getattr(dataset.config, "year", "") == "2007" else "voc2012"
    return "coco"


def same_images(datasets: Mapping[str, ImageDataset]) -> bool:
    """Whether val and test are the same images."""
    val, test = datasets["val"], datasets["test"]
    return len(val) == len(test) and val.fingerprint() == test.fingerprint()


def detection_outcome(
    name: str,
    lrs: Sequence[float],
    diverged: Sequence[bool],
    val: Tables,
    test: Tables,
    test_data: ImageDataset,
    rule: str,
) -> tuple[Outcome, int]:
    """The outcome without examples, and which learning rate was chosen: the best AP on validation.

    Args:
        name: of the protocol.
        diverged: by learning rate.
        val, test: a table for each learning rate.

    Raises:
        UserError: every learning rate diverged.
    """
    grid = [
        {
            "lr": lr,
            "val_ap": None if diverged[i] else summary(val[i])["ap"],
            "test_ap": None if diverged[i] else summary(test[i])["ap"],
            "diverged": diverged[i],
        }
        for i, lr in enumerate(lrs)
    ]
    best = best_setting(grid, "val_ap")
    if best < 0:
        raise UserError(f"{name}: every learning rate diverged ({list(lrs)}): add lower ones to {name}.lrs")
    classes = test_data.object_classes or ()
    details = {"metric": RULES[rule], "per_class": per_class(test[best], classes)}
    objects = true_boxes(test_data)
    counts = np.bincount(objects.labels[objects.scores > 0], minlength=len(classes))
    notes = missing_classes(torch.from_numpy(counts), classes, "test object")
    notes += edge_note(lrs, lrs[best], f"{name}.lrs")
    return Outcome(summary(test[best]), {"lr": lrs[best]}, grid, details, notes), best


def add_masks(outcome: Outcome, table: NDArray[np.float64], classes: Sequence[str]) -> None:
    """Give ``outcome`` the average precision of masks: ``mask_ap``, ``mask_ap50`` and ``mask_ap75``, and by class."""
    outcome.metrics.update({f"mask_{key}": value for key, value in summary(table).items()})
    for name, values in per_class(table, classes).items():
        outcome.details["per_class"][name].update({f"mask_{key}": value for key, value in values.items()})


def per_class(table: NDArray[np.float64], classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """``ap``, ``ap50`` and ``ap75`` of each class; None where it has no object."""
    rows = {"ap": table.mean(0), "ap50": table[0], "ap75": table[IOUS.index(0.75)]}
    return {
        name: {key: None if np.isnan(values[i]) else float(values[i]) for key, values in rows.items()}
        for i, name in enumerate(classes)
    }


def detection_examples(dataset: ImageDataset, found: Boxes, count: int, side: int) -> dict[str, NDArray[Any]]:
    """``count`` images with true and predicted boxes, for pictures.

    Returns:
        ``image`` ``(n, side, side, 3)`` uint8, whole images in the upper left corner of black squares; ``true``
        ``(m, 6)`` float32 (which image, class, box in its pixels) and ``predicted`` ``(p, 7)`` (the score at the end);
        ``classes``, and ``index`` of the images.
    """
    index = spread(count, len(dataset))
    truth = true_boxes(dataset)
    images = np.zeros((len(index), side, side, 3), dtype=np.uint8)
    rows: dict[str, list[NDArray[np.float32]]] = {"true": [], "predicted": []}
    for number, i in enumerate(index):
        image = dataset.image(i)
        height, width = image.shape[:2]
        pixels, scale = resized(image, side * min(height, width) / max(height, width))
        images[number, : pixels.shape[1], : pixels.shape[2]] = as_rgb(pixels.permute(1, 2, 0).numpy())[:side, :side]
        for key, boxes in (("true", truth), ("predicted", found)):
            here = boxes.of(boxes.image == i)
            columns = [np.full(len(here), number), here.labels, *scaled_boxes(here.boxes, scale).T]
            if key == "predicted":
                columns.append(here.scores)
            rows[key].append(np.stack(columns, 1).astype(np.float32))
    return {
        "image": images,
        **{key: np.concatenate(parts) for key, parts in rows.items()},
        "classes": np.array(dataset.object_classes),
        "index": np.array(index),
    }
