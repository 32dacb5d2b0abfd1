"""``ssl-toolkit eval`` on the layouts of the real data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssl_toolkit.cli import main
from tests.data.sets.test_coco import tree as coco_tree
from tests.data.sets.test_voc import tree as voc_tree
from tests.data.trees import cub200, write_text

FEW = [
    "device=cpu",
    "precision=fp32",
    "detection.iterations=2",
    "detection.lrs=[0.01]",
    "detection_finetune.neck=fpn",
    "detection_finetune.iterations=2",
    "detection_finetune.milestones=[1]",
]


SCENES = ["data.train_size=8", "data.val_size=4", "data.test_size=4"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def evaluate(protocols: str, *more: str) -> int:
    sizes = ["data.eval_size=32", "data.eval_resize=32", "scale=mini", "backbone=tiny_resnet", "out=out"]
    return main(["eval", protocols, *FEW, *sizes, *more])


@pytest.mark.parametrize(
    ("kind", "more", "metric", "classes"),
    [
        ("voc", ["data.task=detection", "data.year=2007"], "voc2007", 20),
        ("voc", ["data.task=detection", "data.year=2007", "data.train_list=trainval07+12"], "voc2007", 20),
        ("voc", ["data.task=detection"], "voc2012", 20),
        ("coco", [], "coco", 3),
        ("cub200", [], "coco", 3),
    ],
)
def test_real_layouts(home: Path, kind: str, more: list[str], metric: str, classes: int) -> None:
    if kind == "voc":
        for year in ("2007", "2012"):
            voc_tree(home / "data" / "VOCdevkit", year)
    elif kind == "coco":
        coco_tree(home / "data")
    else:
        cub200(home / "data")
    assert evaluate("detection,detection_finetune", f"data={kind}", "data.root=data", *more) == 0
    found = results(home / "out")
    assert set(found) == {f"detection-{kind}", f"detection_finetune-fpn-{kind}"}
    for result in found.values():
        assert set(result["metrics"]) == {"ap", "ap50", "ap75"}
        assert result["config"]["metric"] == metric
        assert len(result["details"]["per_class"]) == classes
        assert all(0 <= value <= 100 for value in result["metrics"].values())
    ignored = found[f"detection_finetune-fpn-{kind}"]["config"]["train_ignored"]
    assert ignored == (kind == "voc")
    assert (home / "out" / f"detection-{kind}-examples.npz").is_file()


def test_coco_with_masks(home: Path) -> None:
    coco_tree(home / "data")
    more = ["data=coco", "data.root=data", "detection_finetune.masks=true", "detection_finetune.fraction=0.5"]
    assert evaluate("detection_finetune", *more) == 0
    ((name, result),) = results(home / "out").items()
    assert name == "detection_finetune-fpn-mask-50pct-coco"
    keys = {"ap", "ap50", "ap75"}
    assert set(result["metrics"]) == keys | {f"mask_{key}" for key in keys}
    assert result["config"]["masks"] is True
    assert set(result["details"]["per_class"]["dog"]) == set(result["metrics"])


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert evaluate(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_data_without_objects(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_tree(home / "data" / "VOCdevkit")
    assert "detection needs objects: data set voc has none" in error(capsys, "detection", "data=voc", "data.root=data")


def test_a_box_outside_its_image(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cub200(home / "data")
    boxes = home / "data" / "CUB_200_2011" / "bounding_boxes.txt"
    rows = [line.split() for line in boxes.read_text().splitlines()]
    write_text(boxes, [f"{row[0]} 40 40 3 3" for row in rows])
    said = " ".join(error(capsys, "detection", "data=cub200", "data.root=data").split())
    assert "lies outside the image, which is 10 wide and 12 high: correct or remove it" in said


def test_masks_that_are_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = "detection_finetune.masks=true"
    said = " ".join(error(capsys, "detection_finetune", "data=digit_scenes", masks, *SCENES).split())
    assert "detection_finetune.masks=true needs a mask of each object: the train split of digit_scenes has none" in said
    path = coco_tree(home / "data") / "annotations" / "instances_train2017.json"
    whole = json.loads(path.read_text())
    whole["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(whole))
    said = " ".join(error(capsys, "detection_finetune", "data=coco", "data.root=data", masks).split())
    assert "instances_train2017.json: the mask of annotation 1 cannot be used (no polygon of three corners" in said
    said = error(
        capsys, "detection_finetune", "data=coco", "data.root=data", masks, "detection_finetune.metric=voc2012"
    )
    assert "masks are measured by COCO's rule alone" in said


def test_an_option_that_does_not_fit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error(capsys, "detection_finetune", "data=digit_scenes", "detection_finetune.anchors=[8]", *SCENES)
    assert "detection_finetune.anchors has 1 sides for the 3 levels" in said
