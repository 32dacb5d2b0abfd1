"""Instance masks: their average precision against pycocotools and torchmetrics, their geometry, and Mask R-CNN."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Source
from ssl_toolkit.evaluation.detection import DetectionFinetuneConfig
from ssl_toolkit.evaluation.detection.faster_rcnn import Design, detector_loss, detector_predictor, faster_rcnn
from ssl_toolkit.evaluation.detection.finetune import DetectionFinetune, resolved
from ssl_toolkit.evaluation.detection.metrics import (
    IOUS,
    Boxes,
    average_precision,
    joined_boxes,
    mask_average_precision,
    run_lengths,
    summary,
)
from ssl_toolkit.evaluation.detection.objects import check_mask_sizes, resized_masks, true_masks
from ssl_toolkit.evaluation.detection.predicting import Found, Reading, _in_image_pixels, find, pasted, score_masks
from ssl_toolkit.evaluation.detection.samples import Example, RandomShortSide
from tests.evaluation.detection.fakes import ObjectDataset, all_splits, detection_data, objects, squares
from tests.evaluation.detection.test_finetune import IMAGENET, QUICK, SMALL, backbone
from tests.evaluation.fakes import CPU

CLASSES = 3


class Triangles(ObjectDataset):
    """Squares of which the lower left half is the object."""

    has_instance_masks = True

    def instance_masks(self, index: int) -> np.ndarray:
        height, width = self.images[index].shape[:2]
        boxes = self.things[index].boxes.astype(int)
        masks = np.zeros((len(boxes), height, width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[y0:y1, x0:x1] = np.tril(np.ones((y1 - y0, x1 - x0), bool))
        return masks


def triangles(count: int, split: str = "train", cell: int = 16) -> Triangles:
    """`squares` whose upper right half is black."""
    whole = squares(count, split, cell=cell)
    data = Triangles([image.copy() for image in whole.images], whole.things, split)
    for index, image in enumerate(data.images):
        image[~data.instance_masks(index).any(0)] = 0
    return data


def triangle_splits(count: int) -> dict[str, Any]:
    return {split: triangles(count, split) for split in ("train", "val", "test")}


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Tight boxes, half open."""
    result = np.zeros((len(masks), 4), np.float32)
    for row, mask in zip(result, masks):
        y, x = np.nonzero(mask)
        if len(y):
            row[:] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return result


def as_boxes(image: int, masks: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Boxes:
    return Boxes(np.full(len(masks), image), boxes_of(masks), labels, scores.astype(np.float32), run_lengths(masks))


def case(seed: int, ignored: float = 0.2) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Found and true ``(image, masks, labels, scores)`` of six images: ellipses, and the same moved and eaten into."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :50]
    found, truth = [], []
    for image in range(6):
        count = 0 if image == 0 else int(rng.integers(1, 5))
        centre, radius = rng.uniform(5, 40, (count, 2)), rng.uniform(4, 12, (count, 2))
        masks = np.zeros((count, 40, 50), bool)
        for mask, (cx, cy), (a, b) in zip(masks, centre, radius):
            mask[:] = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
        labels = rng.integers(0, CLASSES, count)
        truth.append((image, masks, labels, (rng.random(count) > ignored).astype(float)))
        near = np.concatenate([np.roll(masks, rng.integers(-3, 4), 2), masks & (rng.random(masks.shape) < 0.85)])
        guess = np.where(rng.random(2 * count) < 0.8, np.tile(labels, 2), rng.integers(0, CLASSES, 2 * count))
        found.append((image, near, guess, rng.random(2 * count)))
    return found, truth


@pytest.mark.parametrize("seed", range(3))
def test_masks_equal_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, truth = (joined_boxes([as_boxes(*rows) for rows in side]) for side in case(seed))

    def rows(boxes: Boxes) -> list[dict[str, Any]]:
        assert boxes.masks is not None
        return [
            {
                "id": i + 1,
                "image_id": int(boxes.image[i]) + 1,
                "category_id": int(boxes.labels[i]) + 1,
                "segmentation": {**run, "counts": run["counts"].decode()},
                "bbox": [float(v) for v in (*boxes.boxes[i, :2], *(boxes.boxes[i, 2:] - boxes.boxes[i, :2]))],
                "area": 1.0,
                "iscrowd": int(boxes.scores[i] == 0),
                "score": float(boxes.scores[i]),
            }
            for i, run in enumerate(boxes.masks)
        ]

    images = [{"id": i + 1, "height": 40, "width": 50} for i in range(6)]
    dataset = {"images": images, "annotations": rows(truth), "categories": [{"id": i + 1} for i in range(CLASSES)]}
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    (tmp_path / "found.json").write_text(json.dumps(rows(found)))
    gold = COCO(str(tmp_path / "truth.json"))
    official = COCOeval(gold, gold.loadRes(str(tmp_path / "found.json")), "segm")
    official.evaluate()
    official.accumulate()
    official.summarize()
    ours = summary(mask_average_precision(found, truth, CLASSES))
    assert [ours["ap"], ours["ap50"], ours["ap75"]] == pytest.approx((100 * official.stats[:3]).tolist(), abs=1e-9)
    assert ours["ap"] != summary(average_precision(found, truth, CLASSES, "coco"))["ap"]


def test_masks_equal_torchmetrics() -> None:
    found, truth = case(5, ignored=0.0)
    recalls = np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(iou_type="segm", iou_thresholds=list(IOUS), rec_thresholds=recalls)
    for (_, masks, labels, scores), (_, true, true_labels, _) in zip(found, truth):
        predicted = {"masks": torch.tensor(masks), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}
        metric.update([predicted], [{"masks": torch.tensor(true), "labels": torch.tensor(true_labels)}])
    theirs = metric.compute()
    sides = [joined_boxes([as_boxes(*rows) for rows in side]) for side in (found, truth)]
    ours = summary(mask_average_precision(*sides, CLASSES))
    for key, other in (("ap", "map"), ("ap50", "map_50"), ("ap75", "map_75")):
        assert ours[key] == pytest.approx(100 * float(theirs[other]), abs=1e-3)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5, 8])
def test_shifted_masks_in_closed_form(shift: int) -> None:
    """A mask of width 10 moved by s overlaps itself by (10 - s) / (10 + s)."""
    masks = np.zeros((2, 30, 60), bool)
    masks[0, 3:20, 4:14] = masks[1, 5:29, 30:40] = True
    truth = as_boxes(0, masks, np.array([0, 1]), np.ones(2))
    found = as_boxes(0, np.roll(masks, shift, 2), np.array([0, 1]), np.array([0.9, 0.3]))
    both = (masks & np.roll(masks, shift, 2)).sum((1, 2)) / (masks | np.roll(masks, shift, 2)).sum((1, 2))
    assert both == pytest.approx([(10 - shift) / (10 + shift)] * 2)
    expected = 10 * sum((10 - shift) / (10 + shift) >= iou for iou in IOUS)
    assert summary(mask_average_precision(found, truth, CLASSES))["ap"] == pytest.approx(expected)


def test_nothing_found_and_crowds() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:8, 2:8] = masks[1, 10:, :] = True
    truth = as_boxes(0, masks, np.zeros(2, np.int64), np.array([1, 0]))
    assert summary(mask_average_precision(joined_boxes([]), truth, 1))["ap"] == 0
    part = masks.copy()
    part[1, :, 9:] = False  # a part of the crowd counts nowhere, though its score is the highest
    found = as_boxes(0, part, np.zeros(2, np.int64), np.array([0.5, 0.9]))
    assert summary(mask_average_precision(found, truth, 1))["ap"] == pytest.approx(100)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [32, 64, 50, 21])
def test_masks_stay_on_their_boxes_and_pixels(side: int, flip: bool) -> None:
    data = triangles(12, cell=8)
    data.images = [np.pad(image, ((0, 0), (0, 8), (0, 0))) for image in data.images]  # wider than high
    samples = RandomShortSide(data, list(range(12)), flip, 3, [side], 500, False, True)
    turned = []
    for number in range(12):
        pixels, things, masks = samples.example((0, number))
        assert masks is not None
        assert masks.dtype == torch.uint8
        assert masks.shape == (len(things.boxes), *pixels.shape[1:])
        assert np.abs(boxes_of(masks.numpy()) - things.boxes).max(initial=0) <= {32: 0, 64: 0, 50: 0.51, 21: 1}[side]
        if side == 32:
            assert torch.equal(masks.any(0), pixels.any(0))
        for mask, (x0, _, x1, _) in zip(masks.numpy(), things.boxes):
            turned.append(bool(np.nonzero(mask)[1].mean() + 0.5 > (x0 + x1) / 2))
    assert set(turned) == ({False, True} if flip else {False})


def test_objects_to_be_ignored_lose_their_masks_too() -> None:
    data = triangles(3)
    boxes = [[0, 0, 8, 8], [8, 0, 16, 16], [16, 16, 32, 32]]
    data.things = [objects(boxes, [0, 1, 2], [False, True, False])] * 3
    for train_ignored, kept in ((False, [0, 2]), (True, [0, 1, 2])):
        example = RandomShortSide(data, [0], False, 0, [32], 32, train_ignored, True).example((0, 0))
        assert example.masks is not None
        assert np.array_equal(example.masks.numpy(), data.instance_masks(0)[kept])
    assert RandomShortSide(data, [0], False, 0, [32], 32, False).example((0, 0)).masks is None
    assert resized_masks(np.zeros((0, 4, 4), bool), (8, 6)).shape == (0, 8, 6)


def decoded(runs: np.ndarray) -> np.ndarray:
    from pycocotools import mask as coco_mask

    return np.stack([coco_mask.decode(run) for run in runs]).astype(bool)


def test_pasted_masks_in_closed_form() -> None:
    full = torch.ones(4, 28, 28)
    boxes = torch.tensor([[2.0, 3, 12, 9], [-6, -4, 5, 6], [30, 10, 60, 50], [50, 50, 60, 60]])
    masks = decoded(pasted(full, boxes, 40, 45))
    expected = np.zeros((4, 40, 45), bool)
    expected[0, 3:9, 2:12] = expected[1, :6, :5] = expected[2, 10:, 30:] = True  # the last lies outside
    assert np.array_equal(masks, expected)
    left = torch.zeros(1, 28, 28)
    left[:, :, :14] = 1
    (half,) = decoded(pasted(left, torch.tensor([[4.0, 4, 24, 30]]), 40, 45))
    assert half.sum() == 10 * 26
    assert half[4:30, 4:14].all()
    assert len(pasted(torch.zeros(0, 28, 28), torch.zeros(0, 4), 4, 4)) == 0


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.7])
def test_what_is_trained_on_comes_back_where_it_was(scale: float) -> None:
    """A disc, scaled as training images are, cut out by torchvision as a target, pasted as a prediction."""
    y, x = np.mgrid[:60, :80]
    disc = ((x - 33.5) ** 2 + (y - 28.5) ** 2 < 18**2)[None]
    shape = round(60 * scale), round(80 * scale)
    box = torch.from_numpy(boxes_of(disc) * scale)
    target = project_masks_on_boxes(resized_masks(disc, shape), box, torch.zeros(1, dtype=torch.int64), 28)
    found = Found(box, torch.ones(1), torch.zeros(1, dtype=torch.int64), target)
    result = _in_image_pixels(found, 0, (shape[1] / 80, shape[0] / 60), shape)
    assert result.masks is not None
    again = decoded(result.masks)
    assert (again & disc).sum() / (again | disc).sum() > 0.95
    for axis in (1, 2):
        middle, before = np.nonzero(again)[axis].mean(), np.nonzero(disc)[axis].mean()
        assert middle == pytest.approx(before, abs=0.15)


def design() -> Design:
    return Design("fpn", **SMALL, masks=True)


def test_the_mask_branch() -> None:
    network = faster_rcnn(backbone(), 3, design(), IMAGENET)
    heads = network.roi_heads
    assert heads.mask_roi_pool.output_size == (14, 14)
    assert heads.mask_roi_pool.featmap_names == heads.box_roi_pool.featmap_names
    assert [m.out_channels for m in heads.mask_head.modules() if isinstance(m, torch.nn.Conv2d)] == [16] * 4
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 4
    data = triangles(4)
    batch = RandomShortSide(data, [0, 1, 2, 3], False, 0, [64], 64, False, True).batch([(0, i) for i in range(4)])
    detector_loss(network, CPU)(batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.mask_head.parameters())
    nothing = [Example(torch.zeros(3, 64, 64), objects([], []), torch.zeros(0, 64, 64, dtype=torch.uint8))]
    assert detector_loss(network, CPU)(nothing).isfinite()
    network.eval()
    images = torch.rand(2, 3, 64, 64) * 255
    for one in detector_predictor(network, masks=True)(images)[0]:
        assert one.masks is not None
        assert one.masks.shape == (len(one.boxes), 28, 28)
    assert all(one.masks is None for one in detector_predictor(network)(images)[0])
    plain = faster_rcnn(backbone(), 3, Design("fpn", **SMALL), IMAGENET)
    assert not plain.roi_heads.has_mask()


def test_true_masks_found_are_all_right(monkeypatch: pytest.MonkeyPatch) -> None:
    data = triangles(9, "test")
    for index, image in enumerate(data.images):
        image[0, -1] = index  # tells images apart
    truth = true_masks(data)
    assert truth.masks is not None
    assert summary(score_masks(truth, data)) == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})

    def whole(images: torch.Tensor) -> list[list[Found]]:
        """The true boxes of each image, all of them filled: twice the area of a triangle."""
        found = []
        for image in images:
            boxes, labels, _ = data.objects(int(image[0, 0, -1]))
            ones = torch.ones(len(labels), 28, 28)
            found.append(Found(torch.tensor(boxes), torch.ones(len(labels)), torch.tensor(labels), ones))
        return [found]

    monkeypatch.setattr("ssl_toolkit.evaluation.detection.predicting._in_image_pixels", unshifted)
    (found,) = find(whole, data, Reading(32, None, 4), CPU, "true boxes")
    metrics = summary(score_masks(found, data))  # 136 of 256 pixels: an overlap of 0.53
    assert (metrics["ap50"], metrics["ap75"], metrics["ap"]) == pytest.approx((100, 0, 10))


def unshifted(found: Found, index: int, scale: Any, shape: Any) -> Boxes:
    assert found.masks is not None
    masks = pasted(found.masks, found.boxes, 32, 32)
    return Boxes(np.full(len(masks), index), found.boxes.numpy(), found.labels.numpy(), found.scores.numpy(), masks)


LEARNING = {**QUICK, "iterations": 70, "milestones": [60], "warmup": 5, "batch_size": 8}


def test_it_learns_triangles() -> None:
    options = DetectionFinetuneConfig(**LEARNING, neck="fpn", anchors=[12, 24, 48], masks=True)
    protocol, data = DetectionFinetune(options), detection_data(triangle_splits(48), backbone())
    outcome = protocol.run(data)
    assert set(outcome.metrics) == {"ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75"}
    assert outcome.metrics["mask_ap50"] > 60
    assert outcome.metrics["mask_ap75"] > 30  # boxes filled whole overlap triangles by 0.53
    per_class = outcome.details["per_class"]["class1"]
    assert set(per_class) == set(outcome.metrics)
    mean = np.mean([values["mask_ap"] for values in outcome.details["per_class"].values()])
    assert mean == pytest.approx(outcome.metrics["mask_ap"])


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**QUICK, "neck": "fpn", "lrs": [0.01], "iterations": 5, "masks": True}
    whole = DetectionFinetune(DetectionFinetuneConfig(**options)).run(detection_data(triangle_splits(8), backbone()))
    original, calls = RandomShortSide.batch, []

    def stop(self: Any, keys: Any) -> Any:
        calls.append(keys)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, keys)

    monkeypatch.setattr(RandomShortSide, "batch", stop)
    data = detection_data(triangle_splits(8), backbone(), state=tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        DetectionFinetune(DetectionFinetuneConfig(**options)).run(data)
    resumed = DetectionFinetune(DetectionFinetuneConfig(**options)).run(data)
    assert resumed.metrics == whole.metrics


def test_names_and_what_is_usual() -> None:
    options = DetectionFinetuneConfig(masks=True, fraction=0.1)
    data = triangle_splits(3)
    usual = resolved(options, backbone(), data)
    assert (usual.neck, usual.metric) == ("fpn", "coco")
    assert DetectionFinetune(usual).variant == "fpn-mask-10pct"
    assert DetectionFinetune(DetectionFinetuneConfig(neck="fpn", masks=True)).variant == "fpn-mask"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"neck": "c4"}, "masks are predicted with the pyramid alone: set neck to fpn"),
        ({"metric": "voc2007"}, "masks are measured by COCO's rule alone, metric is voc2007"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DetectionFinetuneConfig(**options, masks=True)


def test_data_that_does_not_fit() -> None:
    source, options = Source(backbone(), {}, "made up"), DetectionFinetuneConfig(masks=True)
    with pytest.raises(UserError, match="masks=true needs a mask of each object: the train split of squares has none"):
        DetectionFinetune(options).check(source, all_splits(3))
    data = triangle_splits(3)
    DetectionFinetune(options).check(source, data)
    short = data["val"]
    short.instance_masks = lambda index: np.zeros((0, 32, 32), bool)
    with pytest.raises(UserError, match=r"squares val: image 0 has \d objects and 0 masks"):
        DetectionFinetune(options).check(source, data)
    train = data["train"]
    samples = RandomShortSide(train, [0], False, 0, [32], 32, False, True)
    train.instance_masks = lambda index: np.zeros((1, 30, 32), bool)
    with pytest.raises(UserError, match="image 0 are 32 wide and 30 high, the image is 32 wide and 32 high"):
        samples.example((0, 0))
    one = as_boxes(0, np.ones((1, 30, 32), bool), np.zeros(1, np.int64), np.ones(1))
    other = as_boxes(0, np.ones((1, 32, 32), bool), np.zeros(1, np.int64), np.ones(1))
    check_mask_sizes(train, one, one)
    with pytest.raises(UserError, match="image 0 are 32 wide and 30 high, the image is 32 wide and 32 high"):
        check_mask_sizes(train, one, other)
