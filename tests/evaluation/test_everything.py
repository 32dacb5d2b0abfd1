"""All protocols as a user meets them: bad data is one line that says what to do, two processes say what one says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.backbones.weights import save_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.evaluation import PROTOCOLS

LABELLED = ["knn", "linear", "linear_augmented", "finetune"]
MASKED = ["segmentation", "segmentation_augmented", "clustering"]
CELLS = ["match_rules"]
"""Those that read the masks of test images alone, at the centres of cells."""

BOXED = ["detection", "detection_finetune"]
FREE = ["matching", "spectrum"]
CACHED = ["knn", "linear", "segmentation", "matching", "match_rules", "spectrum", "clustering"]

SHORT = [
    "backbone=tiny_resnet",
    "device=cpu",
    "precision=fp32",
    "features.cache=false",
    "scale=mini",
    "linear.epochs=1",
    "linear_augmented.epochs=1",
    "finetune.epochs=1",
    "segmentation.iterations=3",
    "segmentation_augmented.iterations=3",
    "detection.iterations=3",
    "detection_finetune.iterations=2",
    "detection_finetune.milestones=[1]",
]
SIZES = ["data.eval_resize=32", "data.eval_size=32"]
SPLITS = {"train": 6, "val": 3, "test": 3}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photos() -> list[str]:
    """Two classes of images of 32x32 pixels with masks of three classes; the options that name them."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for number in range(2 * count):
            for kind in ("images", "masks"):
                path = Path(kind, split, f"class{number % 2}", f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                high, channels = (256, (3,)) if kind == "images" else (3, ())
                cv2.imwrite(str(path), rng.integers(0, high, (32, 32, *channels), dtype=np.uint8))
    masks = ["data.masks=masks", "data.mask_classes=[sky,sea,sand]"]
    return [*SHORT, *SIZES, "data=folder", "data.root=images", *masks]


def arrays(train: list[int], test: list[int]) -> list[str]:
    """Images in arrays with these labels."""
    rng = np.random.default_rng(0)
    options = []
    for name, labels in (("", train), ("val_", train), ("test_", test)):
        np.save(f"{name}images.npy", rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8))
        np.save(f"{name}labels.npy", np.array(labels))
        options += [f"data.{name}{kind}={name}{kind}.npy" for kind in ("images", "labels")]
    return [*SHORT, *SIZES, "data=arrays", *options]


def boxes(categories: Mapping[int, int]) -> list[str]:
    """The layout of COCO with one object an image, of category 1 (cat) but for ``categories`` by number; 2 is dog."""
    rng = np.random.default_rng(0)
    Path("annotations").mkdir()
    for split, count in (("train2017", 8), ("val2017", 4)):
        Path(split).mkdir()
        images, objects = [], []
        for i in range(count):
            cv2.imwrite(f"{split}/{i:012d}.jpg", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": 64, "width": 64})
            box = {"bbox": [8, 8, 24, 20], "area": 480, "iscrowd": 0, "category_id": categories.get(i, 1)}
            objects.append({"id": i, "image_id": i, **box})
        names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": objects, "categories": names}
        Path(f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return [*SHORT, "data=coco", "data.root=.", "data.eval_resize=64", "data.eval_size=64"]


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command says that must fail by one line and status 2."""
    assert main(["eval", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def note_of(protocol: str, *argv: str) -> list[str]:
    """The notes of a command that must succeed."""
    assert main(["eval", protocol, *argv, "out=results"]) == 0
    (path,) = Path("results").glob(f"{protocol}-*.json")
    notes: list[str] = json.loads(path.read_text())["notes"]
    return notes


def test_every_protocol_is_tested_here() -> None:
    assert sorted([*LABELLED, *MASKED, *CELLS, *BOXED, *FREE]) == PROTOCOLS.names()


@pytest.mark.command
@pytest.mark.parametrize("protocol", LABELLED)
def test_labels_outside_the_classes(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, protocol, *arrays([0, 1] * 4, [0, 1, 2, 0]))
    assert "data.test_labels has the label 2, data.labels only 0 to 1" in message


@pytest.mark.command
@pytest.mark.parametrize("protocol", [*MASKED, *CELLS])
def test_mask_values_outside_the_classes(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = photos()
    mask = np.zeros((32, 32), np.uint8)
    mask[5, 6] = 3
    cv2.imwrite("masks/test/class0/2.png", mask)
    message = error_of(capsys, protocol, *options)
    assert "masks/test/class0/2.png" in message
    assert "value 3: data.mask_classes names 3 classes" in message


@pytest.mark.command
@pytest.mark.parametrize("protocol", MASKED)
def test_masks_of_another_size(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = photos()
    cv2.imwrite("masks/val/class1/1.png", np.zeros((16, 32), np.uint8))
    message = error_of(capsys, protocol, *options)
    assert "masks/val/class1/1.png is 16x32" in message
    assert "images/val/class1/1.png is 32x32" in message


@pytest.mark.command
@pytest.mark.parametrize("protocol", BOXED)
def test_objects_outside_the_classes(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "instances_train2017.json" in error_of(capsys, protocol, *boxes({3: 9}))
    assert "no category_id 9" in error_of(capsys, protocol, *SHORT, "data=coco", "data.root=.")


@pytest.mark.parametrize(
    ("protocols", "need"),
    [(LABELLED, "labels"), ([*MASKED, *CELLS], "masks"), (BOXED, "objects")],
    ids=lambda value: str(value),
)
def test_data_without_what_a_protocol_needs(
    protocols: list[str], need: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos()
    plain = [*SHORT, *SIZES, "data=folder", "data.root=images", "data.labels=none"]
    for protocol in protocols:
        message = error_of(capsys, protocol, *plain)
        assert f"{protocol} needs {need}: data set folder has none; use data that has them" in message
    message = error_of(capsys, f"{protocols[0]},matching", *plain)
    assert "leave it out (matching)" in message


@pytest.mark.command
@pytest.mark.parametrize("protocol", FREE)
def test_images_alone_are_enough(protocol: str) -> None:
    photos()
    plain = [*SHORT, *SIZES, "data=folder", "data.root=images", "data.labels=none"]
    assert note_of(protocol, *plain)


@pytest.mark.command
@pytest.mark.parametrize("protocol", LABELLED)
def test_a_class_without_training_images_is_noted(protocol: str) -> None:
    notes = note_of(protocol, *arrays([0, 2] * 4, [0, 1, 2, 0]))
    assert any(note.startswith("1 of 3 classes have no training image: 1") for note in notes), notes


@pytest.mark.command
@pytest.mark.parametrize("protocol", MASKED)
def test_a_class_without_pixels_is_noted(protocol: str) -> None:
    notes = note_of(protocol, *photos(), "data.mask_classes=[sky,sea,sand,gold]")
    assert "1 of 4 classes have no test pixel: gold" in notes


@pytest.mark.command
@pytest.mark.parametrize("protocol", BOXED)
def test_a_class_without_objects_is_noted(protocol: str) -> None:
    assert any("1 of 2 classes have no test object: dog" in note for note in note_of(protocol, *boxes({})))


def test_a_checkpoint_whose_keys_do_not_match_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    save_backbone(Path("good.safetensors"), create_backbone("tiny_resnet"), {})
    with safetensors.safe_open("good.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        metadata = file.metadata()
    weights = load_file("good.safetensors")
    weights["blocks.7.strange"] = weights.pop("blocks.0.bn1.bias")
    save_file(weights, "bad.safetensors", metadata)
    message = error_of(capsys, ",".join(PROTOCOLS.names()), "checkpoint=bad.safetensors", "data=digit_scenes")
    for words in ("bad.safetensors", "tiny_resnet", "blocks.0.bn1.bias is missing", "blocks.7.strange is not part"):
        assert words in message


def evaluated(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Results of the cached protocols by file, without what differs from call to call."""
    scenes = ["data=digit_scenes", "data.train_size=150", "data.val_size=40", "data.test_size=70"]
    weights = [option for option in SHORT if not option.startswith("backbone")] + ["checkpoint=good.safetensors"]
    command = [sys.executable, "-m", "ssl_toolkit.cli", "eval", ",".join(CACHED), *weights, *scenes]
    subprocess.run(
        [*command, f"out={folder}", *options],
        check=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    results = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for result in results.values():
        for name in ("seconds", "extraction_seconds", "created"):
            del result[name]
    return results


@pytest.mark.command
def test_two_processes_equal_one(home: Path) -> None:
    torch.manual_seed(0)
    save_backbone(Path("good.safetensors"), create_backbone("tiny_resnet"), {})
    one, two = evaluated(home / "one"), evaluated(home / "two", "devices=2")
    assert sorted(one) == sorted(f"{protocol}-digit_scenes.json" for protocol in CACHED)
    assert one == two
