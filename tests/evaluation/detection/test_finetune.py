"""Faster R-CNN: what it is made of for which backbone, its schedule, and that it learns."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.backbones.base import BackboneConfig
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Preparation, Source
from ssl_toolkit.evaluation.detection import DetectionFinetuneConfig
from ssl_toolkit.evaluation.detection.faster_rcnn import (
    Design,
    detector_loss,
    faster_rcnn,
    freeze_batchnorm,
    pyramid_levels,
    stage_strides,
)
from ssl_toolkit.evaluation.detection.finetune import DetectionFinetune, resolved, steps_down, subset
from ssl_toolkit.evaluation.detection.samples import Example, RandomShortSide
from tests.evaluation.detection.fakes import all_splits, detection_data, objects, squares
from tests.evaluation.fakes import CPU

SMALL: dict[str, Any] = {"channels": 16, "hidden": 32, "proposals_train": 50, "proposals_test": 20, "rois": 16}
QUICK: dict[str, Any] = {
    **SMALL,
    "iterations": 4,
    "milestones": [3],
    "warmup": 1,
    "batch_size": 4,
    "sides": [32],
    "test_side": 32,
    "longest": 64,
    "flip": False,
    "examples": 2,
}
IMAGENET = Preparation([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 64, 64)


def backbone(name: str = "tiny_resnet", **options: Any) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(BackboneConfig(name, **options))


def examples() -> list[Example]:
    pixels = torch.randint(0, 255, (3, 64, 80), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return [
        Example(pixels, objects([[4, 4, 30, 40], [20, 10, 60, 50]], [0, 2])),
        Example(pixels[:, :48], objects([], [])),
    ]


@pytest.mark.parametrize(
    ("name", "neck", "strides"),
    [
        ("tiny_resnet", "c4", [2, 4, 8, 8]),
        ("tiny_resnet", "fpn", [2, 4, 8, 8]),
        ("resnet18", "c4", [4, 8, 16, 32]),
        ("resnet18", "fpn", [4, 8, 16, 32]),
        ("convnext_atto", "fpn", [4, 8, 16, 32]),
    ],
)
def test_a_detector_for_each_backbone(name: str, neck: str, strides: list[int]) -> None:
    source = backbone(name)
    assert stage_strides(source) == strides
    network = faster_rcnn(source, 3, Design(neck, **SMALL), IMAGENET)
    loss = detector_loss(network, CPU)(examples())
    loss.backward()
    unused = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
    stem = next(network.backbone.parameters())
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0
    assert all("head" in n for n in unused)
    assert all(p.grad is None for p in source.parameters())  # it is a copy that is trained
    network.eval()
    (found,) = network([torch.rand(3, 64, 80)])
    assert found["boxes"].shape[1] == 4


def test_levels_of_a_pyramid() -> None:
    assert pyramid_levels(backbone("tiny_resnet")) == {1: 4, 3: 8}
    assert pyramid_levels(backbone("resnet18")) == {0: 4, 1: 8, 2: 16, 3: 32}


def test_anchors_are_those_of_detectron2_for_a_resnet() -> None:
    for neck, expected in (("c4", ((32, 64, 128, 256, 512),)), ("fpn", ((32,), (64,), (128,), (256,), (512,)))):
        network = faster_rcnn(backbone("resnet18"), 3, Design(neck, **SMALL), IMAGENET)
        assert network.rpn.anchor_generator.sizes == expected
        cells = network.rpn.anchor_generator.num_anchors_per_location()
        assert cells == ([15] if neck == "c4" else [3] * 5)


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_options_reach_the_detector(neck: str) -> None:
    anchors = (8, 16, 24)
    design = Design(neck, anchors, False, 24, 40, 30, 10, 12)
    network = faster_rcnn(backbone(), 5, design, IMAGENET)
    flat = [side for sides in network.rpn.anchor_generator.sizes for side in sides]
    assert flat == [8, 16, 24]
    assert network.rpn._post_nms_top_n == {"training": 30, "testing": 10}
    assert network.rpn._pre_nms_top_n == (
        {"training": 180, "testing": 60} if neck == "c4" else {"training": 30, "testing": 10}
    )
    assert network.roi_heads.fg_bg_sampler.batch_size_per_image == 12
    assert network.roi_heads.box_predictor.cls_score.out_features == 6
    if neck == "c4":
        assert isinstance(network.roi_heads.box_head.norm, nn.Identity)
        with_norm = faster_rcnn(backbone(), 5, Design(neck), IMAGENET)
        assert isinstance(with_norm.roi_heads.box_head.norm, nn.BatchNorm2d)
    else:
        assert network.backbone.out_channels == 24
        assert network.roi_heads.box_head.fc7.out_features == 40


def test_images_are_normalised_as_in_pretraining_and_not_resized() -> None:
    network = faster_rcnn(backbone(), 3, Design("fpn", **SMALL), IMAGENET).eval()
    image = torch.randint(0, 255, (1, 3, 40, 50)).to(torch.uint8)
    batch, _ = network.transform(list(image.float() / 255))
    assert batch.image_sizes == [(40, 50)]
    assert torch.allclose(batch.tensors[:, :, :40, :50], IMAGENET.normalise(image, CPU), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("convnext_atto", {"neck": "c4"}, "neck=c4 is for ResNets, not convnext_atto: set detection_finetune.neck=fpn"),
        ("vit_tiny_patch16_224", {"neck": "fpn"}, "needs maps of several resolutions, vit_tiny_patch16_224 has one"),
        ("tiny_resnet", {"neck": "fpn", "anchors": [8]}, r"1 sides for the 3 levels of tiny_resnet \(strides 4"),
    ],
)  # fmt: skip
def test_backbones_that_do_not_fit_are_refused_before_any_work(name: str, options: Any, words: str) -> None:
    source = Source(backbone(name), {}, "made up")
    state = torch.random.get_rng_state()
    with pytest.raises(UserError, match=words):
        DetectionFinetune(DetectionFinetuneConfig(**options)).check(source, all_splits(3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_usual_for_backbone_and_data() -> None:
    data = all_splits(2)
    sgd = resolved(DetectionFinetuneConfig(), backbone(), data)
    assert (sgd.neck, sgd.optimizer, sgd.lrs, sgd.weight_decay) == ("c4", "sgd", [0.02], 1e-4)
    assert (sgd.iterations, sgd.milestones, sgd.warmup) == (24_000, [18_000, 22_000], 100)
    assert sgd.sides == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    assert (sgd.train_ignored, sgd.metric) == (False, "coco")
    adamw = resolved(DetectionFinetuneConfig(), backbone("convnext_atto"), data)
    assert (adamw.neck, adamw.optimizer, adamw.lrs, adamw.weight_decay) == ("fpn", "adamw", [1e-4], 0.05)
    for split in data.values():
        split.name = "coco"
    coco = resolved(DetectionFinetuneConfig(optimizer="adamw", lrs=[0.1], warmup=7), backbone(), data)
    assert (coco.iterations, coco.milestones, coco.warmup) == (90_000, [60_000, 80_000], 7)
    assert coco.sides == [640, 672, 704, 736, 768, 800]
    assert (coco.optimizer, coco.lrs) == ("adamw", [0.1])
    for split in data.values():
        split.name = "voc"
    voc = resolved(DetectionFinetuneConfig(), backbone(), data)
    assert (voc.train_ignored, voc.metric) == (True, "voc2012")
    data["test"].config.year = "2007"  # type: ignore[attr-defined]
    assert resolved(DetectionFinetuneConfig(), backbone(), data).metric == "voc2007"


def test_the_learning_rate_in_closed_form() -> None:
    factor = steps_down(10, [100, 150])
    expected = {0: 0.001, 5: 0.5005, 10: 1.0, 99: 1.0, 100: 0.1, 149: 0.1, 150: 0.01, 999: 0.01}
    assert {step: factor(step) for step in expected} == pytest.approx(expected)


def test_a_subset_is_fixed_by_its_seed() -> None:
    rows = subset(200, 0.1, 3)
    assert rows == sorted(set(rows)) == subset(200, 0.1, 3)
    assert len(rows) == 20
    assert rows != subset(200, 0.1, 4)
    assert set(rows) < set(subset(200, 0.2, 3))
    assert subset(200, 1.0, 0) == list(range(200))
    assert len(subset(3, 0.01, 0)) == 1


def test_a_tenth_of_the_images_is_trained_on() -> None:
    options = DetectionFinetuneConfig(**QUICK, neck="fpn", fraction=0.1)
    data = all_splits(40)
    protocol = DetectionFinetune(options)
    protocol.check(Source(backbone(), {}, "made up"), data)
    samples = protocol._samples(data["train"])
    assert isinstance(samples, RandomShortSide)
    assert len(samples) == 4
    assert protocol.variant == "fpn-10pct"
    assert DetectionFinetune(DetectionFinetuneConfig(neck="c4")).variant == "c4"


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_batch_norm_is_trained_or_frozen(mode: str) -> None:
    protocol = DetectionFinetune(DetectionFinetuneConfig(**QUICK, neck="fpn", batch_norm=mode))
    data = detection_data(all_splits(8), backbone())
    protocol.check(data.source, data.datasets)
    assert protocol.options.lrs is not None
    network = protocol._trained(data, protocol.options.lrs[0])
    assert network is not None
    first = data.source.backbone.state_dict()
    last = network.backbone.backbone.state_dict()
    same = {key: torch.equal(first[key], last[key]) for key in first}
    assert not same["stem.0.weight"]
    norms = [key for key in first if key.startswith("stem.1.")]
    assert len(norms) == 5
    assert all(same[key] == (mode == "frozen") for key in norms)


def test_frozen_norms_stay_frozen_after_evaluation() -> None:
    network = faster_rcnn(backbone(), 3, Design("fpn", **SMALL), IMAGENET)
    freeze_batchnorm(network)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)
    assert network.training


LEARNING = {**QUICK, "iterations": 70, "milestones": [60], "warmup": 5, "batch_size": 8}


def test_it_learns_squares_and_not_those_of_other_images() -> None:
    options = DetectionFinetuneConfig(**LEARNING, neck="fpn", anchors=[12, 24, 48])
    data = detection_data(all_splits(48, cell=16), backbone())
    outcome = DetectionFinetune(options).run(data)
    assert outcome.metrics["ap50"] > 60
    assert outcome.grid[0]["val_ap"] > 15
    assert outcome.examples["image"].shape == (2, 32, 32, 3)
    for split in data.datasets.values():
        split.things = [*split.things[1:], split.things[0]]  # type: ignore[attr-defined]
    assert DetectionFinetune(options).run(data).metrics["ap50"] < 30


def test_stage_4_learns_as_a_head() -> None:
    few = {**LEARNING, "rois": 8, "proposals_train": 20, "proposals_test": 8, "batch_size": 4, "examples": 0}
    options = DetectionFinetuneConfig(**few, neck="c4", anchors=[12])
    outcome = DetectionFinetune(options).run(detection_data(all_splits(24, cell=16), backbone()))
    assert outcome.metrics["ap50"] > 20


def test_the_best_of_several_learning_rates_and_one_that_diverges() -> None:
    options = DetectionFinetuneConfig(**QUICK, neck="fpn", lrs=[1e-4, 1e30])
    outcome = DetectionFinetune(options).run(detection_data(all_splits(8, cell=16), backbone()))
    assert [row["diverged"] for row in outcome.grid] == [False, True]
    assert outcome.grid[1]["test_ap"] is None
    assert outcome.selected == {"lr": 1e-4}
    options = DetectionFinetuneConfig(**QUICK, neck="fpn", lrs=[1e30])
    with pytest.raises(UserError, match=r"every learning rate diverged \(\[1e\+30\]\): add lower ones"):
        DetectionFinetune(options).run(detection_data(all_splits(8, cell=16), backbone()))


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**QUICK, "neck": "fpn", "lrs": [0.001, 0.002], "iterations": 5}
    whole = DetectionFinetune(DetectionFinetuneConfig(**options)).run(detection_data(all_splits(8), backbone()))
    original, calls = RandomShortSide.batch, []

    def stop(self: Any, keys: Any) -> Any:
        calls.append(keys)
        if len(calls) == 5 + 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, keys)

    monkeypatch.setattr(RandomShortSide, "batch", stop)
    data = detection_data(all_splits(8), backbone(), state=tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt, match=r"stopped Faster R-CNN at lr 0\.002 at step 2 of 5"):
        DetectionFinetune(DetectionFinetuneConfig(**options)).run(data)
    assert len(list(tmp_path.rglob("*.pt"))) == 2
    resumed = DetectionFinetune(DetectionFinetuneConfig(**options)).run(data)
    assert len(calls) == 8 + 3
    assert resumed.metrics == whole.metrics
    assert resumed.grid == whole.grid
    assert list(tmp_path.rglob("*.pt")) == []


def test_gray_images() -> None:
    gray = backbone("tiny_resnet", in_channels=1)
    network = faster_rcnn(gray, 3, Design("fpn", **SMALL), Preparation([0.5], [0.25], 64, 64))
    thing = Example(torch.zeros(1, 64, 64, dtype=torch.uint8), objects([[4, 4, 30, 40]], [0]))
    assert detector_loss(network, CPU)([thing]).isfinite()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"neck": "c5"}, "neck must be one of auto, c4, fpn, not 'c5'"),
        ({"optimizer": "adam"}, "optimizer must be one of"),
        ({"batch_norm": "sync"}, "batch_norm must be one of train, frozen"),
        ({"lrs": [-1.0]}, "lrs must be"),
        ({"iterations": 0}, "iterations must be 1 or more"),
        ({"sides": []}, "sides must be one or more positive numbers"),
        ({"anchors": [0]}, "anchors must be one or more positive numbers"),
        ({"fraction": 0.0}, "fraction 0.0 must be above 0"),
        ({"fraction": 1.1}, "at most 1"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"metric": "map"}, "unknown metric"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DetectionFinetuneConfig(**options)


def test_boxes_of_a_batch_reach_the_loss_in_the_scale_of_the_images() -> None:
    data = squares(3)
    samples = RandomShortSide(data, [0, 1, 2], False, 0, [64], 128, False)
    pixels, things, _ = samples.example((0, 0))
    assert pixels.shape == (3, 64, 64)
    assert np.array_equal(things.boxes, 2 * data.things[0].boxes)
