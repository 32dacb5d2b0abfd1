"""``ssl-toolkit export`` as a user writes it: where files go, what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf

import ssl_toolkit
from ssl_toolkit.backbones import read_backbone, save_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.export_commands import ExportConfig
from tests.zoo.exporters.helpers import fresh

STORED = {"mean": [0.4] * 3, "std": [0.2] * 3, "eval_resize": 40, "eval_size": 32}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as an export looks at it."""
    folder = tmp_path / "mine"
    (folder / "results").mkdir(parents=True)
    config = {"method": {"name": "vicreg"}, "data": {"name": "folder"}, "trainer": {"epochs": 3}}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    save_backbone(folder / "backbone.safetensors", fresh("resnet18"), STORED, {"step": "12"})
    result = {"protocol": "knn", "data": "folder", "metric": "top1", "metrics": {"top1": 51.5}}
    (folder / "results" / "knn-folder.json").write_text(json.dumps(result))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["export", *argv]) == 2
    return capsys.readouterr().err


def test_files_lie_beside_the_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        "safetensors": "backbone-exported.safetensors", "timm": "backbone-timm.safetensors",
        "torchvision": "backbone-torchvision.pth", "detectron2": "backbone-detectron2.pth",
        "mmdetection": "backbone-mmdetection.pth", "huggingface": "backbone-huggingface",
    }  # fmt: skip
    for format_, name in names.items():
        assert main(["export", f"run={run}", f"format={format_}"]) == 0
        told = capsys.readouterr().out
        assert f"weights  {run / name}" in told
        assert "use      " in told
        assert (run / name).exists()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    wanted = fresh("resnet18")(images).pooled
    network = timm.create_model("resnet18", num_classes=0, checkpoint_path=run / names["timm"]).eval()
    torch.testing.assert_close(network(images), wanted)
    assert torch.equal(ssl_toolkit.load_backbone(run / names["huggingface"])(images).pooled, wanted)
    card = (run / names["huggingface"] / "README.md").read_text()
    assert "| knn | folder | top1 51.50 |" in card
    assert "| epochs | 3 |" in card


def test_options_before_and_after_words_are_read(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "here" / "weights.safetensors"
    assert main(["export", f"checkpoint={run / 'backbone.safetensors'}", "--out", str(out), "format=safetensors"]) == 0
    backbone, stored = read_backbone(out)
    assert backbone.config.name == "resnet18"
    assert stored == STORED


def test_a_hub_folder_is_exported_further(run: Path, tmp_path: Path) -> None:
    hub, out = tmp_path / "hub", tmp_path / "tv.pth"
    assert main(["export", f"run={run}", "format=huggingface", f"out={hub}", "license=apache-2.0"]) == 0
    assert "license: apache-2.0" in (hub / "README.md").read_text()
    assert main(["export", f"checkpoint={hub}", "format=torchvision", f"out={out}"]) == 0
    assert torch.load(out, weights_only=True)["conv1.weight"].shape == (64, 3, 7, 7)


def test_a_graph_is_of_the_size_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.pt2"
    assert main(["export", f"run={run}", "format=torch_export", f"out={out}", "size=64"]) == 0
    maps, _ = torch.export.load(out).module()(torch.zeros(3, 3, 64, 64))
    assert maps.shape == (3, 512, 2, 2)


def test_what_does_not_go_together_is_refused(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = f"run={run}"
    assert "say what to export" in refused(capsys)
    assert "not both" in refused(capsys, str(run), words)
    assert "name one run, not 2" in refused(capsys, str(run), "runs/other")
    assert "--checkpoint best is of a run folder" in refused(capsys, words, "--checkpoint", "best")
    assert "give run= or checkpoint=, not both" in refused(capsys, words, "checkpoint=x.safetensors")
    assert "unknown format 'onxx': did you mean 'onnx'" in refused(capsys, words, "format=onxx")
    assert "size= is for onnx and torch_export" in refused(capsys, words, "size=64")
    assert "license= is for the model card" in refused(capsys, words, "license=mit")
    assert "size must be 1 pixel or more, not 0" in refused(capsys, words, "format=onnx", "size=0")
    assert "unknown key 'formt'" in refused(capsys, words, "formt=onnx")
    assert "marks a run as finished" in refused(capsys, words, f"out={run / 'backbone.safetensors'}")
    assert "does not exist" in refused(capsys, f"run={tmp_path / 'nowhere'}")
    assert "unknown option --fromat" in refused(capsys, words, "--fromat", "onnx")


def test_the_yaml_has_every_key_and_its_default() -> None:
    import dataclasses

    from ssl_toolkit.config import compose_config

    given = {str(key): value for key, value in compose_config("export").items() if key != "backbone"}
    assert given == dataclasses.asdict(ExportConfig())
