"""Checkpoints of others where a checkpoint is asked for: init= of a pretraining, checkpoint= of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ssl_toolkit import training
from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import file_source
from tests.helpers import quick_overrides
from tests.zoo.importing import alive, assert_same, images, lightning, prefixed, resnet_features, save, without_head

SMALL = ["backbone=resnet18_small", "views.groups.0.size=32"]


@pytest.fixture(scope="module")
def resnet() -> Any:
    """torchvision's ResNet-18 with a stem for small images."""
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18()
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return alive(model)


def start(folder: Path, init: str, *more: str) -> Any:
    """The backbone that a pretraining begins with."""
    options = [*quick_overrides(folder, "vicreg"), *SMALL, override_of("init", init), *more]
    return training.assemble(compose_config("pretrain", options)).method.backbone.eval()


def test_pretraining_starts_from_a_checkpoint_of_others(tmp_path: Path, resnet: Any) -> None:
    weights = prefixed(without_head(resnet), "backbone.")
    path = save(lightning(weights), tmp_path, "epoch=3-step=40.ckpt")
    assert_same(start(tmp_path, str(path)), *resnet_features(resnet, images(32)), size=32)
    with pytest.raises(
        UserError, match=r"step=40\.ckpt \(format lightning\): it holds resnet18, not resnet34: no weights"
    ):
        start(tmp_path, str(path), "backbone.name=resnet34")


def test_pretraining_starts_from_the_zoo(tmp_path: Path, resnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save(without_head(resnet), tmp_path, "mine.pth")
    (tmp_path / "mine.yaml").write_text(
        "method: VICReg\npaper: https://arxiv.org/abs/2105.04906\nsource: https://example.org\nlicense: MIT\nmodels:\n"
        "  mine: {arch: resnet18, params: 11, files: {backbone: {url: mine.pth, format: vicreg}}}\n"
    )
    monkeypatch.setenv("SSL_TOOLKIT_ZOO", str(tmp_path))
    assert_same(start(tmp_path, "zoo:mine"), *resnet_features(resnet, images(32)), size=32)
    with pytest.raises(UserError, match="unknown zoo checkpoint 'vicregl_resnet50_alpha09': did you mean"):
        start(tmp_path, "zoo:vicregl_resnet50_alpha09")


def test_evaluated_checkpoints_of_others(tmp_path: Path, resnet: Any) -> None:
    path = save({"epoch": 1, "model": prefixed(without_head(resnet), "module.backbone.")}, tmp_path)
    source = file_source(path)
    assert_same(source.backbone, *resnet_features(resnet, images(32)), size=32)
    assert source.name == "weights"
    assert source.preprocessing["std"] == [0.229, 0.224, 0.225]
    assert file_source(path, BackboneConfig("resnet18", stem="small")).backbone.config.stem == "small"
    with pytest.raises(UserError, match=r"it holds resnet18, not resnet34"):
        file_source(path, BackboneConfig("resnet34"))


@pytest.mark.command
def test_the_commands_take_them(tmp_path: Path, resnet: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(lightning(prefixed(without_head(resnet), "net.")), tmp_path, "theirs.ckpt")
    data = ["data=digit_scenes", "data.train_size=64", "data.val_size=32", "data.test_size=32", "features.cache=false"]
    assert main(["eval", "knn", override_of("checkpoint", path), *data]) == 0
    assert list((tmp_path / "theirs-results").glob("knn*.json"))
    page = tmp_path / "page.pth"
    page.write_text("<html>404</html>")
    for command in (["eval", "knn", override_of("checkpoint", page), *data], ["pretrain", override_of("init", page)]):
        capsys.readouterr()
        assert main(command) == 2
        assert f"{page} does not load as plain tensors: it is a web page" in " ".join(capsys.readouterr().err.split())
