"""``ssl-toolkit picture``: a file of each kind, for each source, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.picture_commands import KINDS, PictureConfig
from ssl_toolkit.registry import typed
from tests.test_cli import error_of

SCENES = ["backbone=tiny_resnet", "data=digit_scenes", "data.train_size=32", "data.val_size=16", "data.test_size=24"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.command
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_is_a_picture(kind: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["perplexity=5", "count=20"] if kind == "map" else ["count=2"]
    assert main(["picture", kind, *SCENES, *options]) == 0
    assert f"{kind}.png" in capsys.readouterr().out
    with PIL.Image.open(home / f"{kind}.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert main(["picture", kind, *SCENES, *options, "out=deep/x.svg"]) == 0
    assert "<svg" in (home / "deep" / "x.svg").read_text()


@pytest.mark.command
def test_files_of_ones_own_at_any_size_and_stage(home: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(name, rng.integers(0, 255, (50, 70, 3), dtype=np.uint8))
    assert main(["picture", "pca", *SCENES, "images=[a.png,b.jpg]", "size=96", "stage=0"]) == 0
    assert main(["picture", "similarity", *SCENES, "images=[a.png]", "point=[0.1,0.9]"]) == 0


@pytest.mark.command
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pcb", *SCENES], "did you mean 'pca'"),
        (["pca", "data=digit_scenes"], "say what to look at"),
        (["pca"], "say on what"),
        (["pca", *SCENES, "stage=9"], "has stages 0 to 3"),
        (["pca", *SCENES, "images=[none.png]"], "none.png"),
        (["pca", *SCENES, "out=x.gif"], "out must end in .png"),
        (["pca", *SCENES, "split=tests"], "split must be train"),
        (["pca", *SCENES, "count=0"], "count and gamma must be 1 or more"),
        (["pca", *SCENES, "size=4"], "16 pixels or more"),
        (["map", *SCENES, "count=10"], "perplexity=30 needs more than 10 images"),
        (["similarity", *SCENES, "point=[2,0]"], "two shares from 0 to 1"),
        (["pca", *SCENES, "poit=[0,0]"], "did you mean 'point'"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, "picture", *argv)
    assert not list(home.glob("*.png"))


def test_the_yaml_holds_the_defaults() -> None:
    assert typed(PictureConfig, compose_config("picture"), "picture") == PictureConfig()
