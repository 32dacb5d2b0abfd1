"""``ssl-toolkit eval``: what it evaluates, at which scale, and what it says before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.eval_commands import _scale_note, eval_data_config
from tests.test_cli import error_of, write_photos
from tests.zoo.helpers import own_zoo, zoo_model

SCENES = ["data=digit_scenes", "data.train_size=48", "data.val_size=16", "data.test_size=16", "precision=fp32"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "scale", "says"),
    [
        (["data=digit_scenes"], "mini", "mini for digit_scenes"),
        (["data=imagenet", "data.root=x"], "paper", "paper for imagenet"),
        (["data=folder", "data.root=x", "scale=mini"], "mini", "mini, as asked"),
        (["data=digit_scenes", "scale=paper"], "paper", "paper, as asked"),
    ],
)
def test_the_scale_follows_the_data_unless_it_is_given(overrides: list[str], scale: str, says: str) -> None:
    config, data = eval_data_config(overrides)
    expected = compose_config("eval", [*overrides, f"scale={scale}"])
    assert config == expected
    assert data == expected.data
    assert _scale_note(overrides, config).startswith(says)


def test_an_option_given_wins_over_the_scale() -> None:
    config, _ = eval_data_config(["data=digit_scenes", "linear.epochs=7", "segmentation.iterations=9"])
    assert config.linear.epochs == 7
    assert config.segmentation.iterations == 9


@pytest.mark.command
def test_it_says_what_will_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knn", "backbone=tiny_resnet", "device=cpu", *SCENES]) == 0
    said = capsys.readouterr().out
    for words in (
        "untrained (tiny_resnet) on digit_scenes",
        "fp32",
        "knn: nearest training images",
        "mini for digit_scenes",
    ):
        assert words in said
    assert (home / "untrained-tiny_resnet-results" / "knn-digit_scenes.json").is_file()


@pytest.mark.command
def test_a_published_checkpoint_is_evaluated_by_name(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(home / "cache"))
    own_zoo(home, monkeypatch, {"mine": zoo_model("https://localhost/mine.pth")})
    weights = create_backbone({"name": "resnet50"}).state_dict()
    path = home / "cache" / "zoo" / "mine" / "mine.pth"
    path.parent.mkdir(parents=True)
    torch.save({k.removeprefix("model."): v for k, v in weights.items()}, path)
    write_photos(home / "photos", classes=2, each=8)
    folder = ["data=folder", "data.root=photos", "data.eval_size=32", "data.eval_resize=32"]
    assert main(["eval", "knn", "zoo=mine", *folder, "precision=fp32"]) == 0
    result = json.loads((home / "zoo-mine-results" / "knn-folder.json").read_text())
    assert result["source"] == "mine"
    assert result["backbone"]["name"] == "resnet50"
    assert result["checkpoint"]["path"].endswith("mine.pth")
    np.testing.assert_allclose(result["input"]["mean"], [0.485, 0.456, 0.406])
    assert "mine (resnet50) on folder" in capsys.readouterr().out


@pytest.mark.command
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["zoo=vicregl_resnet50_alpha09"], "did you mean 'vicregl_resnet50_alpha0p9'"),
        (["zoo=x", "run=y"], "give run= or zoo=, not both"),
        (["zoo=x", "run=y", "checkpoint=z"], "give run= or checkpoint= or zoo=, not all"),
        (["backbone=tiny_resnet", "scale=huge"], "unknown scale 'huge'"),
        (["backbone=tiny_resnet", "devices=-1"], "devices 0 or more"),
        (["backbone=tiny_resnet", "protocol=knn"], "protocols are named first"),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, "eval", "knn", *SCENES, *given)
