"""``ssl-toolkit picture``: a file of each kind, for each source, and mistakes in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure

from ssl_toolkit import commands, picture_commands
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.picture_commands import KINDS, PictureConfig
from ssl_toolkit.registry import typed
from ssl_toolkit.training import load_method
from tests.helpers import quick_overrides
from tests.pictures.test_layouts import needs_umap
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
    assert main(["picture", "similarity", *SCENES, "images=[a.png,b.jpg]", "point=[0.1,0.9]", "out=x.html"]) == 0
    data = json.loads(re.findall(r'id="data">(.*)</script>', (home / "x.html").read_text())[0])
    assert data["names"] == ["a.png", "b.jpg"]
    assert data["cell"] == [0, data["rows"] - 1, 0]
    assert main(["picture", "similarity", *SCENES, "count=3", "out=y.html"]) == 0
    assert "test image 23: " in (home / "y.html").read_text()


@pytest.mark.command
@needs_umap
def test_umap(home: Path) -> None:
    assert main(["picture", "map", *SCENES, "layout=umap", "neighbours=5", "count=20"]) == 0
    assert (home / "map.png").is_file()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of eight steps: ``local`` with a local projector, ``plain`` without."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "write_report", lambda run: run)
        for name, method in (("local", "vicregl"), ("plain", "vicreg")):
            options = [*quick_overrides(folder, method), f"name={name}", "monitor.knn_every=null"]
            assert main(["pretrain", *options]) == 0
    return folder


def compared(monkeypatch: pytest.MonkeyPatch, kind: str, *options: str) -> picture_commands.Subject:
    """What a command draws, which is not drawn."""
    seen: list[picture_commands.Subject] = []

    def keep(subject: picture_commands.Subject) -> Figure:
        seen.append(subject)
        return Figure()

    monkeypatch.setitem(picture_commands.KINDS, kind, keep)
    assert main(["picture", kind, "count=2", *options]) == 0
    return seen[0]


@pytest.mark.command
def test_matches_are_made_as_the_training_made_them(home: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = override_of("run", runs / "local")
    trained = load_method(runs / "local")
    maps = torch.randn(2, trained.backbone.num_features, 3, 3)
    with torch.no_grad():
        embedded, plain = trained.local_vectors(maps), maps.flatten(2).mT
        subject = compared(monkeypatch, "matches", run)  # preset ours
        assert torch.equal(subject.search.vectors(maps), plain)
        assert subject.compared == "backbone features"
        assert subject.search.only_mutual
        subject = compared(monkeypatch, "matches", run, "space=embeddings")
        assert torch.equal(subject.search.vectors(maps), embedded)
        assert subject.compared == "local embeddings"
        assert not subject.search.only_mutual
        checkpoint = override_of("checkpoint", runs / "local" / "checkpoints" / "best.ckpt")
        best = load_method(runs / "local", "best")
        of_best = compared(
            monkeypatch, "matches", checkpoint, "data=digit_scenes", "data.test_size=8", "space=embeddings"
        )
        assert torch.equal(of_best.search.vectors(maps), best.local_vectors(maps))
        by_features = compared(monkeypatch, "matches", run, "space=features").search
        assert torch.equal(by_features.vectors(maps), plain)
        assert not by_features.only_mutual
        assert torch.equal(compared(monkeypatch, "pca", run).search.vectors(maps), plain)
        assert torch.equal(compared(monkeypatch, "pca", run, "space=embeddings").search.vectors(maps), embedded)
        other = compared(monkeypatch, "matches", override_of("run", runs / "plain")).search
        assert torch.equal(other.vectors(maps), plain)
        assert not other.only_mutual


@pytest.mark.command
def test_embeddings_are_drawn_and_refused_where_there_are_none(
    home: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = override_of("run", runs / "local"), override_of("run", runs / "plain")
    assert main(["picture", "similarity", run, "space=embeddings", "out=x.html", "count=2"]) == 0
    assert "local embeddings" in (home / "x.html").read_text()
    for kind in ("matches", "pca"):
        assert main(["picture", kind, run, "space=embeddings", "count=2"]) == 0
    for argv, message in (
        ([plain, "space=embeddings"], "its method has no local projector; take space=features"),
        ([*SCENES, "space=embeddings"], "there is no training checkpoint of a run"),
    ):
        assert message in error_of(capsys, "picture", "matches", *argv)
    assert "a map shows pooled features" in error_of(capsys, "picture", "map", run, "space=embeddings")


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
        (["pca", *SCENES, "out=x.html"], "out must end in .png, .svg, .pdf for pca"),
        (["similarity", *SCENES, "out=x.gif"], "out must end in .png, .svg, .pdf, .html"),
        (["similarity", *SCENES, "point=[0,2]", "out=x.html"], "two shares from 0 to 1"),
        (["map", *SCENES, "layout=pca"], "layout must be tsne or umap"),
        (["map", *SCENES, "neighbours=1"], "neighbours 2 or more"),
        (["matches", *SCENES, "space=pixels"], "space must be features or embeddings"),
        (["pca", *SCENES, "space=embeddings", "stage=0"], "stage goes with space=features"),
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
