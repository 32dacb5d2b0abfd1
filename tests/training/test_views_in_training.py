"""What a run does with its views: the sheet, the engine it names, images it cannot read, other kinds of images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.report import write_report
from ssl_toolkit.training.callbacks import UnreadableFile
from ssl_toolkit.training.examples import save_view_examples
from ssl_toolkit.views import ViewGroup, view_loader
from ssl_toolkit.views.sheet import draw_sheet
from tests.helpers import needs_dali, quick_overrides
from tests.test_cli import write_photos
from tests.views.helpers import Photos, views

SMALL = ["views.groups.0.size=32", "data.eval_resize=32", "data.eval_size=32"]


def run_on(folder: Path, runs: Path, *overrides: str) -> tuple[Path, str]:
    """A pretraining of two epochs on a folder of images, and what it printed."""
    console = Console(record=True, width=300)
    options = ["views=small", "data=folder", override_of("data.root", folder), override_of("runs_dir", runs)]
    fixed = ["method=vicreg", "backbone=tiny_resnet", "method.expander.widths=[16,16]"]
    trainer = ["trainer.epochs=2", "trainer.batch_size=8", "trainer.workers=0", "trainer.precision=fp32"]
    run = training.pretrain(
        compose_config("pretrain", [*options, *fixed, *trainer, *SMALL, "name=run", *overrides]), console
    )
    return run, console.export_text()


def test_the_sheet_and_the_engine_are_shown(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", classes=2, each=12)
    run, text = run_on(tmp_path / "photos", tmp_path / "runs")
    sheet = np.asarray(PIL.Image.open(run / "examples" / "views.png"))
    assert sheet.shape[2] == 3
    assert sheet.std() > 5
    assert "engine    torch (auto: DALI is faster only with a CUDA device, this is cpu)" in text
    assert "2 large views of 32 px, crop 0.2 to 1 of the area" in text
    assert not (run / "unreadable.txt").exists()


def test_the_sheet_shows_the_views_of_the_first_step(tmp_path: Path) -> None:
    images: Any = Photos(12)
    config = views(ViewGroup(size=32))
    save_view_examples(tmp_path / "views.png", images, config, seed=3, batch_size=6, count=4)
    loader = view_loader("torch", images, config, seed=3, batch_size=6, workers=0, device=torch.device("cpu"))
    first = next(iter(loader))
    pixels = [images.image(index) for index in first.index.tolist()]
    expected = draw_sheet(pixels, first, 4, [config.groups[0].describe()])
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "views.png")), expected)


@pytest.mark.parametrize("engine", ["torch", pytest.param("dali", marks=needs_dali)])
def test_unreadable_images_are_skipped_and_named(engine: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, classes=2, each=20)
    victim = sorted(photos.rglob("*.*"))[7]
    victim.write_bytes(victim.read_bytes()[:200])
    options = ["data.val_fraction=0", "trainer.max_unreadable=0.05", f"views.engine={engine}"]
    run, text = run_on(photos, tmp_path / "runs", *options)
    lines = (run / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 1  # once, though met in both epochs
    assert str(victim) in lines[0]
    assert f"skipped: {lines[0]}" in text
    assert (run / "backbone.safetensors").exists()
    with pytest.raises(UserError, match=r"skipped with trainer\.max_unreadable"):
        run_on(photos, tmp_path / "runs", *options, "trainer.max_unreadable=0.01", "name=strict")


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    line = "cannot decode photos/\udcff.jpg (cut short): remove or replace it"
    for _ in range(2):  # a resumed run knows what it wrote
        UnreadableFile(tmp_path / "unreadable.txt", Console(quiet=True))(line)
    assert (tmp_path / "unreadable.txt").read_text() == line.replace("\udcff", "\\udcff") + "\n"


@needs_dali
def test_both_engines_train_on_the_same_boxes(tmp_path: Path) -> None:
    rows: list[list[dict[str, Any]]] = []
    for engine in ("torch", "dali"):
        options = [f"name={engine}", "trainer.log_every=1", f"views.engine={engine}"]
        run = training.pretrain(compose_config("pretrain", [*quick_overrides(tmp_path), *options]), Console(quiet=True))
        with (run / "metrics.csv").open() as file:
            rows.append(list(csv.DictReader(file)))
    for ours, theirs in zip(*rows):
        assert ours["match_location_pixels"] == theirs["match_location_pixels"]
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=0.02)
    assert [row["loss"] for row in rows[0]] != [row["loss"] for row in rows[1]]  # two engines, not one twice


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (3, 16), (4, 8)])
def test_other_images_train_and_say_what_is_left_out(channels: int, bits: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(20):
        ramp = np.linspace(0, 2**bits - 1, 40)[:, None, None] * generator.random((1, 50, channels))
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), ramp.astype(np.uint16 if bits == 16 else np.uint8))
    statistics = [f"data.mean={[0.5] * channels}", f"data.std={[0.25] * channels}"]
    run, text = run_on(
        tmp_path / "photos", tmp_path / "runs", f"data.in_channels={channels}", f"data.bits={bits}", *statistics
    )
    assert ("saturation, hue and gray left out" in text) == (channels != 3)
    page = write_report(run).read_text()
    assert "Matches by feature" in page
    assert "What the network saw" in page
