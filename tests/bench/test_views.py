"""The contenders of ``bench views`` make the views that the recipe asks for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

from ssl_toolkit.bench import bench, view_rivals
from ssl_toolkit.errors import UserError
from ssl_toolkit.views import ViewGroup, ViewsConfig
from tests.bench.helpers import TINY

RECIPE = ViewsConfig(groups=[ViewGroup(size=32), ViewGroup(count=6, size=16, large=False)])
MAKERS = [view_rivals.torchvision_pil, view_rivals.torchvision_v2]
if importlib.util.find_spec("lightly"):
    MAKERS.append(view_rivals.lightly_vicregl)


def test_made_files_are_different_photographs(tmp_path: Path) -> None:
    files = view_rivals.make_files(tmp_path, 4, 375, 500, 90)
    pictures = [np.asarray(PIL.Image.open(file)) for file in files]
    assert all(picture.shape == (375, 500, 3) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert 20_000 < files[0].stat().st_size < 150_000


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rivals_make_normalised_views_of_the_recipes_sizes(maker: object, tmp_path: Path) -> None:
    files = view_rivals.make_files(tmp_path, 4, 48, 64, 90)
    loader = view_rivals.loader(files, maker(RECIPE), batch_size=2, workers=0)  # type: ignore[operator]
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        images = batch[:8]  # lightly's grids come after its views
        assert [tuple(view.shape) for view in images] == [(2, 3, 32, 32)] * 2 + [(2, 3, 16, 16)] * 6
        assert {view.dtype for view in images} == {torch.float32}
        assert min(float(view.min()) for view in images) < -0.5


@pytest.mark.parametrize("maker", [view_rivals.torchvision_pil, view_rivals.torchvision_v2])
def test_rivals_follow_the_chain_of_each_position(maker: object) -> None:
    still = {"jitter": 0.0, "gray": 0.0, "blur": [0.0], "flip": 0.0, "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    config = ViewsConfig(groups=[ViewGroup(size=16, solarize=[0.0, 1.0], **still)])  # type: ignore[arg-type]
    white = PIL.Image.new("RGB", (20, 20), (255, 255, 255))
    plain, inverted = maker(config)(white)  # type: ignore[operator]
    assert plain.min() > 2
    assert inverted.max() < -1.7


def test_the_table_shows_throughput(tmp_path: Path) -> None:
    console = Console(record=True, width=140)
    out = bench("views", [*TINY["views"], f"out={tmp_path / 'views.json'}"], console)
    text = console.export_text()
    assert "images/s" in text
    assert "torch engine" in text
    assert "torchvision, PIL" in text
    (comparison,) = json.loads(out.read_text())["comparisons"]
    for row in comparison["contenders"]:
        if "absent" not in row:
            assert row["items_per_second"] == pytest.approx(8 / row["median_seconds"])


def test_a_folder_of_ones_own_is_used(tmp_path: Path) -> None:
    view_rivals.make_files(tmp_path, 6, 40, 48, 90)
    console = Console(record=True, width=140)
    options = ["rounds=1", "workers=0", "batch_size=3", "recipes=small", "contenders=torchvision"]
    bench("views", [*options, f"root={tmp_path}", f"out={tmp_path / 'views.json'}"], console)
    assert "small: 2x32 views of 6 images" in console.export_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["recipes=vicregg"], "unknown view recipe 'vicregg': did you mean 'vicreg"),
        (["contenders=lightli"], "unknown contender 'lightli': did you mean 'lightly'"),
        (["images=0"], "images must be at least 1"),
        (["height=4"], "height and width"),
        (["workers=-1"], "workers must not be negative"),
        (["root=/nowhere"], "root=/nowhere is not a folder"),
    ],
)
def test_bad_options_are_named(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        bench("views", [*TINY["views"], *options, f"out={tmp_path / 'x.json'}"], Console(quiet=True))
