"""Segmentation on augmented images: planted answers, many processes as one, interruption, every option, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.cli import main
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import EvalData, Preparation, SegmentationAugmentedConfig, Source
from ssl_toolkit.evaluation.protocol import Outcome
from ssl_toolkit.evaluation.segmentation import SegmentationAugmented, networks
from ssl_toolkit.evaluation.segmentation import augmented as module
from ssl_toolkit.registry import typed
from tests.criteria.test_distributed import spawn, start
from tests.data.sets import test_ade20k, test_cityscapes, test_voc
from tests.evaluation.fakes import CPU, ArrayDataset, colour_blocks
from tests.test_cli import error_of, write_photos

PREPARATION = Preparation([0.5] * 3, [0.25] * 3, 16, 16, batch_size=5)
QUIET = Console(quiet=True)
SMALL: dict[str, Any] = {
    "iterations": 12,
    "batch_size": 6,
    "resize": [16, 16],
    "crop": [16, 16],
    "lrs": [0.1, 0.02],
    "examples": 3,
}
PLAIN: dict[str, Any] = {"scale": [1.0, 1.0], "flip": False, "photometric": False, "dropout": 0.0, "cat_max_ratio": 1.0}


class PixelBackbone(Backbone):
    """A cell for each pixel, whose features are its colour, behind a norm that training changes."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.config = BackboneConfig(name="pixel-test")
        self.num_features, self.stage_channels = 3, (3, 3)
        self.net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3) if norm else nn.Identity())
        nn.init.dirac_(self.net[0].weight)
        nn.init.zeros_(self.net[0].bias)

    def forward(self, images: Tensor) -> Features:
        maps = self.net(images)
        return Features(maps, maps.mean((2, 3)))

    def stages(self, images: Tensor) -> list[Tensor]:
        return [self.net(images), F.avg_pool2d(self.net(images), 4)]


def data_of(datasets: dict[str, ArrayDataset], backbone: Backbone | None = None, state: Path | None = None) -> EvalData:
    source = Source(backbone or PixelBackbone(), {}, "made up")
    return EvalData(source, datasets, {}, PREPARATION, CPU, torch.float32, "weights", state, QUIET)


def blocks(train: int = 24, others: int = 9) -> dict[str, ArrayDataset]:
    return {split: colour_blocks(train if split == "train" else others, split) for split in ("train", "val", "test")}


def run(data: EvalData, **options: Any) -> Outcome:
    protocol = SegmentationAugmented(SegmentationAugmentedConfig(**{**SMALL, **options}))
    protocol.check(data.source, data.datasets)
    assert protocol.reads(data.source) == {}
    return protocol.run(data)


def same(one: Outcome, other: Outcome) -> bool:
    pictures = all(np.array_equal(one.examples[key], other.examples[key]) for key in one.examples)
    return pictures and (one.grid, one.metrics, one.details) == (other.grid, other.metrics, other.details)


def test_planted_answers() -> None:
    right = run(data_of(blocks()), **PLAIN, iterations=60, lrs=[0.1, 0.5])
    assert right.metrics == {"miou": 100.0, "foreground_miou": 100.0, "pixel_accuracy": 100.0}
    shuffled = blocks()
    for dataset in shuffled.values():
        dataset.masks = np.random.default_rng(0).permutation(dataset.masks)
    assert abs(run(data_of(shuffled), **PLAIN).metrics["pixel_accuracy"] - 33) < 12


def test_augmented_training_finds_the_planted_answer_too() -> None:
    outcome = run(data_of(blocks()), iterations=60, photometric=False, lrs=[0.1, 0.5])
    assert outcome.metrics["miou"] > 97


@pytest.mark.parametrize("options", [
    {"features": "stages"},
    {"head": "fcn", "lrs": [0.01]},
    {"backbone": "finetune", "lrs": [0.05, 0.02]},
    {"test": "slide", "crop": [8, 12]},
    {"optimizer": "adamw", "lrs": [0.1], "warmup": 5},
], ids=str)  # fmt: skip
def test_every_way_learns(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FCN_CHANNELS", 16)
    protocol_data = data_of(blocks(), PixelBackbone(norm="backbone" in options))
    before = [p.clone() for p in protocol_data.source.backbone.parameters()]
    outcome = run(protocol_data, **{**PLAIN, "iterations": 40, **options})
    assert outcome.metrics["miou"] > 90
    assert all(map(torch.equal, before, protocol_data.source.backbone.parameters()))  # a copy is trained
    assert len(outcome.grid) == len(options.get("lrs", SMALL["lrs"]))


def test_heads_side_by_side_are_what_each_is_alone() -> None:
    both = run(data_of(blocks()), scale=[0.8, 1.5])
    for row in both.grid:
        alone = run(data_of(blocks()), scale=[0.8, 1.5], lrs=[row["lr"]])
        assert alone.grid == [row]


def test_a_diverged_rate_is_left_out_and_all_of_them_are_an_error() -> None:
    outcome = run(data_of(blocks()), lrs=[1e38, 0.1])
    assert [row["diverged"] for row in outcome.grid] == [True, False]
    assert outcome.selected == {"lr": 0.1}
    with pytest.raises(UserError, match=r"segmentation_augmented: every learning rate diverged"):
        run(data_of(blocks()), lrs=[1e38, 2e38])


def test_the_result_says_what_was_decided(tmp_path: Path) -> None:
    protocol = SegmentationAugmented(SegmentationAugmentedConfig(resize=[16, 16], crop=[16, 16]))
    data = data_of(blocks())
    protocol.check(data.source, data.datasets)
    said = protocol.options
    assert (said.optimizer, said.iterations, said.test, said.features) == ("sgd", 40_000, "whole", "last")
    assert said.lrs == [0.1, 0.05, 0.03, 0.02, 0.01]
    names = {
        (head, backbone): SegmentationAugmented(SegmentationAugmentedConfig(head=head, backbone=backbone)).variant
        for head in ("linear", "fcn")
        for backbone in ("frozen", "finetune")
    }
    assert list(names.values()) == ["", "finetuned", "fcn", "fcn-finetuned"]


def test_examples_are_cut_like_other_protocols() -> None:
    datasets = blocks()
    outcome = run(data_of(datasets), **PLAIN, iterations=60)
    kept = outcome.examples
    assert kept["index"].tolist() == [0, 4, 8]
    assert np.array_equal(kept["image"], datasets["test"].images[[0, 4, 8]])
    assert np.array_equal(kept["mask"], datasets["test"].masks[[0, 4, 8]])
    assert (kept["prediction"] == kept["mask"]).mean() > 0.95
    assert kept["prediction"].dtype == np.uint8
    assert run(data_of(datasets), examples=0).examples == {}


CASES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "finetune": {"backbone": "finetune", "lrs": [0.05], "features": "stages"},
    "fcn": {"head": "fcn", "lrs": [0.001], "iterations": 3},
}


def worker(number: int, world: int, port: int, folder: str) -> None:
    start(number, world, port)
    networks.FCN_CHANNELS = 16
    for name, options in CASES.items():
        outcome = run(data_of(blocks(), PixelBackbone(norm=True), Path(folder)), **options)
        torch.save({"grid": outcome.grid, "details": outcome.details}, Path(folder) / f"{name}{number}.pt")
    bad = blocks()
    bad["test"].masks[1, 3, 3] = 77  # of process 1
    try:
        run(data_of(bad))
    except UserError as error:
        (Path(folder) / f"error{number}").write_text(str(error))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FCN_CHANNELS", 16)
    spawn(worker, 2, str(tmp_path))
    for name, options in CASES.items():
        alone = run(data_of(blocks(), PixelBackbone(norm=True)), **options)
        first, second = (torch.load(tmp_path / f"{name}{number}.pt", weights_only=True) for number in range(2))
        assert first == second
        for got, expected in zip(first["grid"], alone.grid):
            # Sums of floats in another order: a pixel may fall on the other side.
            assert got["val_miou"] == pytest.approx(expected["val_miou"], abs=0.3), name
            assert got["test_miou"] == pytest.approx(expected["test_miou"], abs=0.3), name
    for number in range(2):
        assert "the mask of image 1 holds 77" in (tmp_path / f"error{number}").read_text()
    assert list(tmp_path.glob("segmentation_augmented-*")) == []


class Stopping(ArrayDataset):
    """Interrupts this process, as Ctrl+C would, at the n-th image that is read."""

    def __init__(self, other: ArrayDataset, at: int) -> None:
        super().__init__(other.images, None, other.masks, other.split)
        self.at = at

    def image(self, index: int) -> np.ndarray:
        if self.reads == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().image(index)


@pytest.fixture
def heeding() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("split", "at"), [("train", 20), ("val", 4), ("test", 2), ("train", 6 * 12 + 20)])
def test_what_is_stopped_goes_on(split: str, at: int, tmp_path: Path, heeding: None) -> None:
    options = {"backbone": "finetune", "lrs": [0.05, 0.02]}
    whole = run(data_of(blocks(), PixelBackbone(norm=True)), **options)
    data = data_of(blocks(), PixelBackbone(norm=True), tmp_path / "kept")
    stopping = {**data.datasets, split: Stopping(data.datasets[split], at)}
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(data, datasets=stopping), **options)
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept
    again = run(data, **options)
    assert same(whole, again)
    assert not (tmp_path / "kept").exists()
    reads = data.datasets["train"].reads
    assert reads <= 2 * 6 * 12  # two runs of 12 steps of 6 images, none of them again


def test_finished_rates_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(blocks(), None, tmp_path)
    monkeypatch.setattr(module, "segmentation_outcome", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(data)
    reads = data.datasets["train"].reads
    monkeypatch.undo()
    assert same(run(data), run(data_of(blocks())))
    assert data.datasets["train"].reads == reads


@pytest.mark.parametrize(("options", "words"), [
    ({"backbone": "frosen"}, "did you mean 'frozen'"),
    ({"head": "fnc"}, "did you mean 'fcn'"),
    ({"features": "first"}, "unknown segmentation_augmented.features 'first'"),
    ({"optimizer": "sdg"}, "did you mean 'sgd'"),
    ({"test": "slides"}, "did you mean 'slide'"),
    ({"lrs": []}, "lrs must be different positive numbers"),
    ({"iterations": 0}, "iterations must be 1 or more"),
    ({"batch_size": 0}, "batch_size and iterations must be 1 or more"),
    ({"examples": -1}, "not negative"),
    ({"weight_decay": -1.0}, "weight_decay and warmup must not be negative"),
    ({"dropout": 1.0}, "dropout at least 0 and below 1"),
    ({"crop": [5]}, "crop must be height and width"),
    ({"resize": [10, 20]}, "resize must be the longer and the shorter side"),
    ({"scale": [2.0, 0.5]}, "scale must be a range"),
    ({"cat_max_ratio": 0.0}, "cat_max_ratio must be above 0"),
    ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
    ({"crops": [4, 4]}, "did you mean 'crop'"),
])  # fmt: skip
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(SegmentationAugmentedConfig, options, "segmentation_augmented")


@pytest.mark.parametrize(("backbone", "options", "words"), [
    ("tiny_resnet", {"output_stride": 16}, "output_stride=16 is for timm ResNets"),
    ("tiny_resnet", {"warmup": 12}, "warmup=12 leaves nothing of iterations=12"),
    ("tiny_resnet", {"crop": [16, 20]}, "crop: 20 pixels .* of tiny_resnet, .* multiple of 8"),
    ("resnet18", {"crop": [24, 32]}, "crop: 24 pixels .* multiple of 16"),
    ("vit_tiny_patch16_224", {"crop": [24, 32], "warmup": 0}, "vit_tiny_patch16_224 does not take images of 24x32"),
])  # fmt: skip
def test_what_does_not_fit_is_said_before_any_work(backbone: str, options: dict[str, Any], words: str) -> None:
    data = data_of(blocks(), create_backbone(backbone))
    with pytest.raises(UserError, match=words) as caught:
        run(data, **options)
    assert "\n" not in str(caught.value)
    assert data.datasets["train"].reads == 0


def test_an_empty_split_a_bad_mask_and_an_absent_class() -> None:
    empty = blocks()
    empty["val"] = ArrayDataset(np.zeros((0, 16, 16, 3), np.uint8), None, np.zeros((0, 16, 16), np.uint8), "val")
    with pytest.raises(UserError, match="arrays: its val split has no images"):
        run(data_of(empty))
    strange = blocks()
    strange["train"].masks[3] = 200
    with pytest.raises(UserError, match="arrays train: the mask of image 3 holds 200"):
        run(data_of(strange))
    absent = blocks()
    absent["test"].masks[absent["test"].masks == 2] = 255
    outcome = run(data_of(absent))
    assert "1 of 3 classes have no test pixel: class2" in outcome.notes


def voc_tree(root: Path) -> list[str]:
    test_voc.tree(root / "VOCdevkit")
    return ["data=voc"]


def ade_tree(root: Path) -> list[str]:
    test_ade20k.tree(root)
    return ["data=ade20k"]


def cityscapes_tree(root: Path) -> list[str]:
    test_cityscapes.tree(root)
    return ["data=cityscapes"]


@pytest.mark.parametrize("tree", [voc_tree, ade_tree, cityscapes_tree])
def test_real_layouts_end_to_end(tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        *tree(tmp_path),
        f"data.root={tmp_path}",
        "data.eval_size=32",
        "data.eval_resize=32",
        "backbone=tiny_resnet",
        "scale=mini",
    ]
    given += ["device=cpu", "precision=fp32", "segmentation.iterations=3", "segmentation_augmented.iterations=3"]
    assert main(["eval", "segmentation,segmentation_augmented", *given, "out=results"]) == 0
    name = given[0].removeprefix("data=")
    for protocol in ("segmentation", "segmentation_augmented"):
        result = json.loads((tmp_path / "results" / f"{protocol}-{name}.json").read_text())
        assert 0 <= result["metrics"]["miou"] <= 100
        classes = {"voc": 21, "ade20k": 150, "cityscapes": 19}[name]
        assert len(result["details"]["per_class_iou"]) == classes
        assert result["config"]["features"] == "last"
        assert result["selected"]["lr"] in result["config"]["lrs"]
        with np.load(tmp_path / "results" / f"{protocol}-{name}-examples.npz") as examples:
            assert examples["prediction"].shape == examples["mask"].shape
    assert result["config"]["crop"] == [64, 64]
    assert not any((tmp_path / "results" / ".unfinished").glob("segmentation_augmented*"))


def test_data_without_masks_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path, classes=2, each=4)
    command = ["eval", "segmentation_augmented", "data=folder", f"data.root={tmp_path}", "backbone=tiny_resnet"]
    said = error_of(capsys, *command, "device=cpu")
    assert "segmentation_augmented needs masks" in said
