"""The linear detector against loops, and with answers that are known."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.backbones.base import BackboneConfig
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection import DetectionConfig
from ssl_toolkit.evaluation.detection.frozen import Detection, multiple_of
from ssl_toolkit.evaluation.detection.linear import (
    FrozenMaps,
    _kept,
    assign,
    cell_centres,
    decode,
    detection_loss,
    fit_standardizer,
    new_heads,
    targets,
)
from ssl_toolkit.evaluation.detection.samples import Example
from ssl_toolkit.evaluation.detection.samples import SquareCrops as SquareBatches
from ssl_toolkit.evaluation.heads import Standardizer
from tests.evaluation.detection.fakes import (
    PREPARATION,
    ObjectDataset,
    WideColourBackbone,
    all_splits,
    detection_data,
    objects,
    squares,
)
from tests.evaluation.fakes import CPU

QUICK: dict[str, Any] = {
    "lrs": [0.003, 0.03],
    "iterations": 60,
    "batch_size": 8,
    "size": 32,
    "scales": [1.0, 1.0],
    "flip": False,
    "examples": 3,
}


def test_one_cell_objects_are_found_and_shuffled_ones_are_not() -> None:
    outcome = Detection(DetectionConfig(**QUICK)).run(detection_data(all_splits()))
    assert outcome.metrics["ap"] > 98
    assert outcome.selected["lr"] in (0.003, 0.03)
    assert [set(row) for row in outcome.grid] == [{"lr", "val_ap", "test_ap", "diverged"}] * 2
    assert set(outcome.details["per_class"]) == {"class0", "class1", "class2"}
    assert "pycocotools" in outcome.details["metric"]
    data = all_splits()
    for split in data.values():  # the objects of another image
        split.things = [*split.things[1:], split.things[0]]
    shuffled = Detection(DetectionConfig(**QUICK)).run(detection_data(data))
    assert shuffled.metrics["ap50"] < 10


def test_examples_show_images_with_true_and_predicted_boxes() -> None:
    data = all_splits()
    outcome = Detection(DetectionConfig(**QUICK)).run(detection_data(data))
    shown = outcome.examples
    assert shown["index"].tolist() == [0, 16, 31]
    for number, index in enumerate(shown["index"]):
        assert np.array_equal(shown["image"][number], data["test"].images[index])
        rows = shown["true"][shown["true"][:, 0] == number]
        assert np.array_equal(rows[:, 2:], data["test"].things[index].boxes)
        assert np.array_equal(rows[:, 1], data["test"].things[index].labels)
    likely = shown["predicted"][shown["predicted"][:, 6] > 0.5]
    overlaps = [box_iou(torch.tensor(row[None, 2:6]), torch.tensor(shown["true"][:, 2:])).max() for row in likely]
    assert len(likely) > 2
    assert min(overlaps) > 0.8


def test_an_empty_class_is_left_out_and_named() -> None:
    data = all_splits()
    data["test"].things = [objects(t.boxes, [0] * len(t.labels)) for t in data["test"].things]
    outcome = Detection(DetectionConfig(**QUICK)).run(detection_data(data))
    assert outcome.details["per_class"]["class2"] == {"ap": None, "ap50": None, "ap75": None}
    assert "2 of 3 classes have no test object: class1, class2" in outcome.notes


def test_assignment_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.random((5, 2)) * 50
        size = rng.random((5, 2)) ** 2 * 40 + 0.5
        boxes = torch.tensor(np.concatenate((corner, corner + size), 1)).clamp(max=64)
        centres = cell_centres(8, 8, 8.0, CPU).double()
        got = assign(centres, boxes, 8.0)
        for cell, (x, y) in enumerate(centres.tolist()):
            best, area = -1, math.inf
            for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                mx, my = (x0 + x1) / 2, (y0 + y1) / 2
                inside = x0 < x < x1 and y0 < y < y1 and abs(mx - x) < 12 and abs(my - y) < 12
                holds = x - 4 <= mx < x + 4 and y - 4 <= my < y + 4
                if (inside or holds) and (x1 - x0) * (y1 - y0) < area:
                    best, area = n, (x1 - x0) * (y1 - y0)
            assert int(got[cell]) == best
    assert assign(centres, boxes[:0], 8.0).tolist() == [-1] * 64


def test_a_tiny_object_has_its_cell() -> None:
    owner = assign(cell_centres(4, 4, 8.0, CPU), torch.tensor([[9.0, 17.0, 10.0, 18.0]]), 8.0)
    assert (owner.view(4, 4) >= 0).nonzero().tolist() == [[2, 1]]


def test_cells_in_ignored_objects_are_not_scored() -> None:
    things = objects([[0, 0, 16, 16], [0, 0, 8, 8]], [2, 1], [True, False])
    labels, scored, boxes = targets([Example(torch.zeros(3, 32, 32), things)], 4, 4, 8.0, CPU)
    assert labels.view(4, 4)[0, 0] == 1
    assert (labels >= 0).sum() == 1
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[:2, :2] = False
    expected[0, 0] = True
    assert torch.equal(scored.view(4, 4), expected)
    assert boxes[0].tolist() == [0, 0, 8, 8]


def test_decoded_boxes_in_closed_form() -> None:
    outputs = torch.tensor([[0.5, 0.0], [-0.25, 0.0], [0.0, math.log(2)], [math.log(3), 99.0]])
    boxes = decode(outputs, torch.tensor([[4.0, 12.0], [12.0, 12.0]]), 8.0)
    assert boxes[0].tolist() == pytest.approx([8 - 4, 10 - 12, 8 + 4, 10 + 12])
    assert boxes[1, 0] == pytest.approx(12 - 8)
    assert boxes[1, 3] == pytest.approx(12 + 4 * math.exp(5), rel=1e-5)


def giou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union - (hull - union) / hull


def test_the_loss_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    classes, cells, heads = 3, 16, 2
    outputs = torch.randn(classes + 4, heads, cells, generator=generator, dtype=torch.float64)
    things = objects([[1, 2, 14, 13], [20, 20, 30, 27], [16, 0, 32, 10]], [2, 0, 1], [False, False, True])
    target = targets([Example(torch.zeros(3, 32, 32), things)], 4, 4, 8.0, CPU)
    centres = cell_centres(4, 4, 8.0, CPU)
    got = detection_loss(outputs, centres.double(), 8.0, target)
    labels, scored, boxes = (t.tolist() for t in target)
    positive = sum(label >= 0 for label in labels)
    assert 2 <= positive < cells
    assert not all(scored)
    total = 0.0
    for head in range(heads):
        for cell in range(cells):
            for k in range(classes):
                p = 1 / (1 + math.exp(-float(outputs[k, head, cell])))
                if scored[cell]:
                    hit = labels[cell] == k
                    total += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
            if labels[cell] >= 0:
                dx, dy, w, h = outputs[classes:, head, cell].tolist()
                x, y = centres[cell, 0].item() + 8 * dx, centres[cell, 1].item() + 8 * dy
                w, h = 8 * math.exp(w) / 2, 8 * math.exp(h) / 2
                total += 1 - giou([x - w, y - h, x + w, y + h], boxes[cell])
    assert float(got) == pytest.approx(total / positive, rel=1e-5)


def test_a_batch_without_objects_trains_the_background() -> None:
    target = targets([Example(torch.zeros(3, 32, 32), objects([], []))], 4, 4, 8.0, CPU)
    outputs = torch.zeros(7, 1, 16, requires_grad=True)
    loss = detection_loss(outputs, cell_centres(4, 4, 8.0, CPU), 8.0, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(16 * 3 * 0.75 * 0.25 * math.log(2))
    assert (outputs.grad[:3] > 0).all()
    assert (outputs.grad[3:] == 0).all()


def test_a_head_is_what_it_would_be_alone() -> None:
    data = all_splits(12)
    both = Detection(DetectionConfig(**{**QUICK, "lrs": [0.003, 1e6], "iterations": 10})).run(detection_data(data))
    alone = Detection(DetectionConfig(**{**QUICK, "lrs": [0.003], "iterations": 10})).run(detection_data(data))
    assert both.grid[0]["test_ap"] == pytest.approx(alone.grid[0]["test_ap"], abs=1e-6)


def test_new_heads_start_with_the_prior() -> None:
    heads = new_heads(2, 5, 3)
    outputs = heads(torch.randn(5, 6))
    assert torch.allclose(outputs[:3].sigmoid(), torch.tensor(0.01))
    assert (outputs[3:] == 0).all()


@pytest.mark.parametrize("features", ["last", "stages"])
def test_maps_of_images_of_any_shape(features: str) -> None:
    reader = FrozenMaps(WideColourBackbone(), features, 8, PREPARATION, CPU, torch.float32)
    images = torch.randint(0, 255, (2, 3, 20, 37)).to(torch.uint8)
    maps = reader(images)
    assert maps.shape == (2, 3 if features == "last" else 6, 6, 10)  # filled up to 24 x 40
    assert reader.stride(images, maps) == 4
    assert maps[0, 0, 0, 0] == pytest.approx(float(images[0, 0, :4, :4].float().mean() / 255), rel=1e-5)


def test_channels_are_standardised_by_their_cells() -> None:
    data = squares(6)
    reader = FrozenMaps(WideColourBackbone(), "last", 4, PREPARATION, CPU, torch.float32)
    got = fit_standardizer(reader, data, 32)
    maps = reader(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in data.images]))
    expected = Standardizer.fit(maps)
    assert torch.allclose(got.mean, expected.mean)
    assert torch.allclose(got.std, expected.std)


def test_weaker_copies_are_dropped() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8], [-5, -5, 3, 3], [40, 40, 50, 50]])
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.7], [0.005, 0.2], [0.5, 0.5]])
    found = _kept(boxes, scores, (16, 16), 0.5, 10)
    assert found.boxes.tolist() == [[0, 0, 8, 8], [1, 0, 9, 8], [0, 0, 3, 3]]
    assert found.labels.tolist() == [0, 1, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.2])
    assert len(_kept(boxes, scores, (16, 16), 0.5, 1).labels) == 1
    assert len(_kept(boxes, scores * math.nan, (16, 16), 0.5, 1).labels) == 0


@pytest.mark.parametrize(("name", "size", "multiple"), [("tiny_resnet", 64, 8), ("resnet18", 100, 32)])
def test_the_multiple_is_the_stride_of_the_last_map(name: str, size: int, multiple: int) -> None:
    assert multiple_of(create_backbone(name), size) == multiple


def test_a_backbone_that_cannot_take_the_size_is_refused_before_any_work() -> None:
    vit = create_backbone(BackboneConfig("vit_tiny_patch16_224", image_size=64))
    data = detection_data(all_splits(4), vit)
    protocol = Detection(DetectionConfig(size=60))
    with pytest.raises(UserError, match="does not take images of 60x60 pixels"):
        protocol.check(data.source, data.datasets)


def test_what_is_chosen_by_backbone_and_data() -> None:
    data = detection_data(all_splits(4))
    protocol = Detection(DetectionConfig(size=32))
    protocol.check(data.source, data.datasets)
    assert (protocol.options.features, protocol.options.metric) == ("last", "coco")
    data.source.backbone.norm = "layer"
    protocol.check(data.source, {**data.datasets})
    assert protocol.options.features == "last"  # as resolved before
    other = Detection(DetectionConfig(size=32, metric="voc2012"))
    other.check(data.source, data.datasets)
    assert (other.options.features, other.options.metric) == ("stages", "voc2012")
    assert protocol.reads(data.source) == {}


@pytest.mark.parametrize("rule", ["voc2007", "voc2012"])
def test_the_metric_is_named_in_the_result(rule: str) -> None:
    outcome = Detection(DetectionConfig(**QUICK, metric=rule)).run(detection_data(all_splits()))
    assert outcome.details["metric"].startswith(f"VOC {2007 if rule == 'voc2007' else 2010}")
    assert outcome.metrics["ap50"] > 95


def test_validation_images_that_are_test_images_are_looked_at_once() -> None:
    data = all_splits(8)
    data["test"] = data["val"]
    looked: list[int] = []

    class Counted(ObjectDataset):
        def image(self, index: int) -> Any:
            looked.append(index)
            return super().image(index)

    data["val"] = data["test"] = Counted(data["val"].images, data["val"].things, "val")
    options = {**QUICK, "iterations": 2, "examples": 0}
    outcome = Detection(DetectionConfig(**options)).run(detection_data(data))
    assert sorted(looked) == list(range(8))
    assert outcome.grid[0]["val_ap"] == outcome.grid[0]["test_ap"]


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**QUICK, "iterations": 12}
    whole = Detection(DetectionConfig(**options)).run(detection_data(all_splits(8)))
    original, calls = SquareBatches.batch, []

    def stop(self: Any, keys: Any) -> Any:
        calls.append(keys)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return original(self, keys)

    monkeypatch.setattr(SquareBatches, "batch", stop)
    data = detection_data(all_splits(8), state=tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt, match="stopped linear detection at step 5 of 12"):
        Detection(DetectionConfig(**options)).run(data)
    assert len(list(tmp_path.rglob("*.pt"))) == 1
    resumed = Detection(DetectionConfig(**options)).run(data)
    assert len(calls) == 6 + 12 - 5
    assert resumed.metrics == whole.metrics
    assert list(tmp_path.rglob("*.pt")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lrs": []}, "lrs must be"),
        ({"features": "lst"}, "features"),
        ({"metric": "voc"}, "unknown metric 'voc'"),
        ({"iterations": 0}, "iterations, batch_size and size must be 1 or more"),
        ({"scales": [2.0, 0.5]}, "scales must be two numbers, the smaller first"),
        ({"nms": 0.0}, "nms 0.0 must be between 0 and 1"),
        ({"examples": -1}, "must not be negative"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, UserError), match=words):
        DetectionConfig(**options)
