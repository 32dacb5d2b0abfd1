"""Average precision of boxes, by the rules of VOC (2007 and 2012) and of COCO, and of masks by that of COCO."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.errors import nearest

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Thresholds of overlap that ``ap`` is the mean over."""

RULES = {
    "voc2007": "VOC 2007: precision at 11 recalls, difficult objects count nowhere",
    "voc2012": "VOC 2010 to 2012: area under the curve, difficult objects count nowhere",
    "coco": "COCO: precision at 101 recalls, 100 boxes an image, crowds count nowhere (pycocotools)",
}
"""Names of the rules, and what each means."""

MAX_BOXES = 100
"""Boxes of an image that COCO's rule looks at."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of many images, of objects or of predictions.

    Attributes:
        image: ``(n,)`` int64, which image each lies in.
        boxes: ``(n, 4)`` float32, ``x0, y0, x1, y1`` in pixels of that image, half open.
        labels: ``(n,)`` int64, classes from 0.
        scores: ``(n,)`` float32 of predictions; of objects 1, and 0 for those that are to be ignored.
        masks: ``(n,)``, the mask of each in the size of its image, as pycocotools' run lengths; None without masks.
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def of(self, rows: NDArray[Any]) -> Boxes:
        """Those at ``rows``, positions or a mask."""
        masks = None if self.masks is None else self.masks[rows]
        return Boxes(self.image[rows], self.boxes[rows], self.labels[rows], self.scores[rows], masks)


def joined_boxes(parts: Sequence[Boxes]) -> Boxes:
    """All of ``parts``, sorted by image; within an image in the order they come in."""
    if not parts:
        return Boxes(
            np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
        )
    masks = [part.masks for part in parts if part.masks is not None]
    joined = Boxes(
        np.concatenate([part.image for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate(masks) if len(masks) == len(parts) else None,
    )
    return joined.of(np.argsort(joined.image, kind="stable"))


def check_rule(rule: str | None) -> None:
    """ValueError unless ``rule`` is None or one of `RULES`."""
    if rule is not None and rule not in RULES:
        raise ValueError(f"unknown metric {rule!r}: {nearest(rule, RULES)}")


def average_precision(found: Boxes, truth: Boxes, classes: int, rule: str) -> NDArray[np.float64]:
    """AP in percent at each of `IOUS` for each class, ``(10, classes)``; nan for a class without a scored object.

    Args:
        found: predictions.
        truth: objects; those of score 0 are difficult (VOC) or crowds (COCO).
        rule: of `RULES`.
    """
    if rule == "coco":
        return _coco(found, truth, classes, "bbox")
    return np.stack([_voc_class(found, truth, label, rule) for label in range(classes)], axis=1)


def mask_average_precision(found: Boxes, truth: Boxes, classes: int) -> NDArray[np.float64]:
    """As `average_precision` by COCO's rule, masks compared with masks; both sides have them."""
    return _coco(found, truth, classes, "segm")


def run_lengths(masks: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Masks ``(n, H, W)`` as what `Boxes` holds of them."""
    from pycocotools import mask as coco_mask

    runs = np.empty(len(masks), dtype=object)
    for i, mask in enumerate(masks):
        runs[i] = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return runs


def summary(table: NDArray[np.float64]) -> dict[str, float]:
    """``ap`` (mean over `IOUS`), ``ap50`` and ``ap75`` in percent: means of ``(10, classes)`` over the classes that
    have objects, 0 where none has."""
    table = table[:, ~np.isnan(table).all(0)]
    mean = table.mean(1) if table.shape[1] else np.zeros(len(IOUS))
    return {"ap": float(mean.mean()), "ap50": float(mean[0]), "ap75": float(mean[IOUS.index(0.75)])}


def _voc_class(found: Boxes, truth: Boxes, label: int, rule: str) -> NDArray[np.float64]:
    """AP of one class at each of `IOUS`, as in the development kits of VOC.

    A prediction belongs to the object of its image that it overlaps most, the first of equals. It is right if it
    overlaps it by more than the threshold and no prediction of higher score has it, left out if the object is
    difficult, and wrong else.
    """
    truth = truth.of(truth.labels == label)
    found = found.of(found.labels == label)
    found = found.of(np.argsort(-found.scores, kind="stable"))
    positives = int((truth.scores > 0).sum())
    if positives == 0:
        return np.full(len(IOUS), np.nan)
    overlap, best = _best_object(found, truth)
    easy = np.append(truth.scores > 0, True)[best]  # best is -1 where the image has no object
    result = []
    for iou in IOUS:
        matched = overlap > iou
        first = np.zeros(len(found), dtype=bool)
        rows = np.flatnonzero(matched)
        first[rows[np.unique(best[rows], return_index=True)[1]]] = True
        counted = ~matched | easy
        right = np.cumsum((first & easy)[counted])
        precision = right / np.arange(1, len(right) + 1)
        result.append(100 * _area(right / positives, precision, rule))
    return np.array(result)


def _best_object(found: Boxes, truth: Boxes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The largest overlap of each prediction with an object of its image, and which that is; 0 and -1 without one."""
    order = np.argsort(truth.image, kind="stable")
    start, stop = (np.searchsorted(truth.image[order], found.image, side) for side in ("left", "right"))
    counts = stop - start
    row = np.repeat(np.arange(len(found)), counts)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    thing = order[np.repeat(start, counts) + offset]
    overlap = pair_iou(found.boxes[row], truth.boxes[thing])
    by_overlap = np.lexsort((thing, -overlap, row))
    has, at = np.unique(row[by_overlap], return_index=True)
    largest, best = np.zeros(len(found)), np.full(len(found), -1)
    largest[has], best[has] = overlap[by_overlap][at], thing[by_overlap][at]
    return largest, best


def pair_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of boxes in pairs, ``(n, 4)`` and ``(n, 4)`` to ``(n,)``; 0 where neither has an area."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    sides = np.minimum(a64[:, 2:], b64[:, 2:]) - np.maximum(a64[:, :2], b64[:, :2])
    both = sides.clip(min=0).prod(1)
    union = (a64[:, 2:] - a64[:, :2]).prod(1) + (b64[:, 2:] - b64[:, :2]).prod(1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64], rule: str) -> float:
    """Average precision of a curve, whose precision at a recall is the best at that recall or a higher one."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if rule == "voc2007":
        points = np.arange(11) / 10
        # recall comes as a ratio of counts: 3/10 and 0.3 are to be the same
        return float(envelope[np.searchsorted(recall, points - 1e-12)].mean())
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope[:-1]).sum())


def _coco(found: Boxes, truth: Boxes, classes: int, kind: str) -> NDArray[np.float64]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = sorted(set(found.image.tolist()) | set(truth.image.tolist()))
    if not len(truth):
        return np.full((len(IOUS), classes), np.nan)
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how long each step took
        for boxes in (truth, found):
            side = COCO()
            side.dataset = _coco_annotations(boxes, images, classes, crowds=boxes is truth)
            side.createIndex()
            sides.append(side)
        scoring = COCOeval(*sides, kind)
        scoring.params.areaRng, scoring.params.areaRngLbl = [[0, 1e10]], ["all"]
        scoring.params.maxDets = [MAX_BOXES]
        scoring.evaluate()
        scoring.accumulate()
    precision = scoring.eval["precision"][..., 0, 0]  # thresholds, recalls, classes; -1 without objects
    table: NDArray[np.float64] = np.where(precision[:, 0] > -1, 100 * precision.mean(1), np.nan)
    return table


def _coco_annotations(boxes: Boxes, images: Sequence[int], classes: int, crowds: bool) -> dict[str, Any]:
    """What ``instances_*.json`` would hold; numbers start at 1, since to pycocotools 0 is no match.

    Run lengths bring their size along: that of images is asked for and not used.
    """
    corners = boxes.boxes.astype(np.float64)
    sizes = corners[:, 2:] - corners[:, :2]
    masks = [None] * len(boxes) if boxes.masks is None else boxes.masks.tolist()
    rows = zip(boxes.image.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), corners[:, :2].tolist(),
               sizes.tolist(), sizes.prod(1).tolist(), masks)  # fmt: skip
    return {
        "info": {},
        "images": [{"id": image + 1, "height": 0, "width": 0} for image in images],
        "categories": [{"id": label + 1} for label in range(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": image + 1,
                "category_id": label + 1,
                "bbox": [*corner, *size],
                "area": area,
                "score": score,
                "iscrowd": int(crowds and score == 0),
                **({} if mask is None else {"segmentation": mask}),
            }
            for number, (image, label, score, corner, size, area, mask) in enumerate(rows, 1)
        ],
    }
