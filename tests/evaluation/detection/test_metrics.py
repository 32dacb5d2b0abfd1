"""Average precision against brute force in loops, scikit-learn, pycocotools on files and torchmetrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from ssl_toolkit.evaluation.detection.metrics import (
    IOUS,
    Boxes,
    average_precision,
    check_rule,
    joined_boxes,
    pair_iou,
    summary,
)

CLASSES = 4


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.integers(0, 60, (count, 2))
    return np.concatenate((corner, corner + rng.integers(4, 40, (count, 2))), 1).astype(np.float32)


def case(seed: int, images: int = 12, ignored: float = 0.2, ties: bool = True) -> tuple[Boxes, Boxes]:
    """Predictions near objects, some doubled, some of another class, some of nothing; image 0 has no object, class 3
    none at all; scores are rounded where there are to be ties."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(images):
        count = 0 if image == 0 else int(rng.integers(0, 6))
        boxes, labels = random_boxes(rng, count), rng.integers(0, CLASSES - 1, count)
        truth.append(Boxes(np.full(count, image), boxes, labels, (rng.random(count) > ignored).astype(np.float32)))
        near = np.concatenate((boxes, boxes)) + rng.integers(-4, 5, (2 * count, 4)).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guess = np.where(rng.random(2 * count) < 0.8, np.tile(labels, 2), rng.integers(0, CLASSES, 2 * count))
        boxes = np.concatenate((near, random_boxes(rng, 3)))
        guess = np.concatenate((guess, rng.integers(0, CLASSES, 3)))
        scores = rng.random(len(boxes)).round(2 if ties else 12).astype(np.float32)
        found.append(Boxes(np.full(len(boxes), image), boxes, guess, scores))
    return joined_boxes(found), joined_boxes(truth)


def brute_iou(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def brute_voc(found: Boxes, truth: Boxes, label: int, iou: float, rule: str) -> float:
    """The development kit's procedure, one prediction at a time."""
    scored = sum(1 for i in range(len(truth)) if truth.labels[i] == label and truth.scores[i] > 0)
    if scored == 0:
        return float("nan")
    mine = [i for i in range(len(found)) if found.labels[i] == label]
    taken: set[int] = set()
    curve = []
    right = wrong = 0
    for i in sorted(mine, key=lambda i: -float(found.scores[i])):
        best, which = -1.0, -1
        for j in range(len(truth)):
            if truth.image[j] == found.image[i] and truth.labels[j] == label:
                overlap = brute_iou(found.boxes[i].astype(np.float64), truth.boxes[j].astype(np.float64))
                if overlap > best:
                    best, which = overlap, j
        if best > iou:
            if truth.scores[which] == 0:
                continue
            if which not in taken:
                taken.add(which)
                right += 1
            else:
                wrong += 1
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    if rule == "voc2007":
        total = sum(max((p for r, p in curve if 10 * r >= t * scored), default=0.0) for t in range(11))
        return 100 * total / 11
    area, before = 0.0, 0
    for r, _ in curve:
        if r > before:
            area += max(p for other, p in curve if other >= r) / scored
            before = r
    return 100 * area


@pytest.mark.parametrize("rule", ["voc2007", "voc2012"])
@pytest.mark.parametrize("seed", range(6))
def test_voc_equals_brute_force(rule: str, seed: int) -> None:
    found, truth = case(seed)
    table = average_precision(found, truth, CLASSES, rule)
    expected = [[brute_voc(found, truth, label, iou, rule) for label in range(CLASSES)] for iou in IOUS]
    np.testing.assert_allclose(table, expected, atol=1e-9)
    assert np.isnan(table[:, 3]).all()
    assert 0 < summary(table)["ap"] < 100


def test_difficult_objects_and_doubles_in_closed_form() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    other = np.array([[20, 20, 30, 30]], np.float32)
    boxes = np.concatenate((box, other))
    zeros = np.zeros(2, np.int64)
    truth = Boxes(zeros, boxes, zeros, np.array([1, 0], np.float32))
    three = Boxes(
        np.zeros(3, np.int64),
        np.concatenate((other, box, box)),
        np.zeros(3, np.int64),
        np.array([0.9, 0.8, 0.7], np.float32),
    )
    for rule in ("voc2007", "voc2012", "coco"):
        # the difficult one counts nowhere, the second find comes after recall 1
        assert summary(average_precision(three, truth, 1, rule))["ap"] == pytest.approx(100)
    last = three.of(np.array([1])), Boxes(zeros, boxes, zeros, np.ones(2, np.float32))
    assert summary(average_precision(*last, 1, "voc2012"))["ap50"] == 50
    assert summary(average_precision(*last, 1, "voc2007"))["ap50"] == pytest.approx(100 * 6 / 11)
    assert summary(average_precision(*last, 1, "coco"))["ap50"] == pytest.approx(100 * 51 / 101)


def test_summary_takes_the_mean_over_classes_with_objects() -> None:
    table = np.full((10, 3), np.nan)
    table[:, 0], table[:, 2] = np.arange(10), 10 + np.arange(10)
    assert summary(table) == {"ap": 9.5, "ap50": 5.0, "ap75": 10.0}
    assert summary(np.full((10, 2), np.nan)) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_nothing_found_is_zero_and_no_object_is_nan() -> None:
    _, truth = case(0)
    nothing = joined_boxes([])
    for rule in ("voc2007", "voc2012", "coco"):
        table = average_precision(nothing, truth, CLASSES, rule)
        assert (table[:, :3] == 0).all()
        assert np.isnan(average_precision(truth, nothing, CLASSES, rule)).all()


@pytest.mark.parametrize("seed", range(3))
def test_coco_equals_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, truth = case(seed)

    def rows(boxes: Boxes) -> list[dict]:
        return [
            {
                "id": i + 1,
                "image_id": int(boxes.image[i]) + 1,
                "category_id": int(boxes.labels[i]) + 1,
                "bbox": [float(v) for v in (*boxes.boxes[i, :2], *(boxes.boxes[i, 2:] - boxes.boxes[i, :2]))],
                "area": float(np.prod(boxes.boxes[i, 2:] - boxes.boxes[i, :2])),
                "iscrowd": int(boxes.scores[i] == 0),
                "score": float(boxes.scores[i]),
            }
            for i in range(len(boxes))
        ]

    images = [{"id": i + 1} for i in range(12)]
    dataset = {"images": images, "annotations": rows(truth), "categories": [{"id": i + 1} for i in range(CLASSES)]}
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    (tmp_path / "found.json").write_text(json.dumps(rows(found)))
    gold = COCO(str(tmp_path / "truth.json"))
    official = COCOeval(gold, gold.loadRes(str(tmp_path / "found.json")), "bbox")
    official.evaluate()
    official.accumulate()
    official.summarize()
    ours = summary(average_precision(found, truth, CLASSES, "coco"))
    assert [ours["ap"], ours["ap50"], ours["ap75"]] == pytest.approx((100 * official.stats[:3]).tolist(), abs=1e-9)


def test_coco_equals_torchmetrics() -> None:
    found, truth = case(7, ignored=0.0, ties=False)
    # its own thresholds are float32, and boxes of whole pixels overlap by 3/5 exactly
    recalls = np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(iou_thresholds=list(IOUS), rec_thresholds=recalls, class_metrics=True)
    for image in range(12):
        f, t = found.of(found.image == image), truth.of(truth.image == image)
        predicted = {"boxes": torch.tensor(f.boxes), "scores": torch.tensor(f.scores), "labels": torch.tensor(f.labels)}
        metric.update([predicted], [{"boxes": torch.tensor(t.boxes), "labels": torch.tensor(t.labels)}])
    theirs = metric.compute()
    table = average_precision(found, truth, CLASSES, "coco")
    ours = summary(table)
    for key, other in (("ap", "map"), ("ap50", "map_50"), ("ap75", "map_75")):
        assert ours[key] == pytest.approx(100 * float(theirs[other]), abs=1e-4)
    per_class = {int(c): float(v) for c, v in zip(theirs["classes"], theirs["map_per_class"])}
    for label in range(3):
        assert table[:, label].mean() == pytest.approx(100 * per_class[label], abs=1e-4)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    average_precision(*case(0), CLASSES, "coco")
    assert capfd.readouterr().out == ""


def test_pair_iou_of_boxes_without_area() -> None:
    point = np.array([[3, 3, 3, 3]], np.float32)
    assert pair_iou(point, point).tolist() == [0.0]


def test_unknown_rules_are_named() -> None:
    with pytest.raises(ValueError, match="unknown metric 'voc2008': did you mean 'voc2007' or 'voc2012'"):
        check_rule("voc2008")
    check_rule(None)
