"""The command line as a user meets it: results where it says they are, and one clear line for every mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ssl_toolkit.cli import main
from tests.helpers import heed_interrupts, quick_overrides

FAST_EVAL = ["linear.epochs=1", "segmentation.iterations=2", "precision=fp32"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_photos(root: Path, classes: int, each: int) -> None:
    rng = np.random.default_rng(0)
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(each):
            image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            cv2.imwrite(str(root / f"class{c}" / f"{i}.png"), image)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(["pretrain", *quick_overrides(runs), "name=first"]) == 0
    return runs / "first"


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail by one line and status 2."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


@pytest.mark.command
def test_a_run_is_a_folder(trained: Path) -> None:
    names = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.csv",
        "environment.json",
        "backbone.safetensors",
        "report.html",
        "checkpoints/last.ckpt",
        "examples/matches.npz",
    } <= names
    config = (trained / "config.yaml").read_text()
    assert "gamma_by: size" in config  # presets are written out
    torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.command
def test_eval_compare_and_report(trained: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knn,linear,segmentation", f"run={trained}", *FAST_EVAL]) == 0
    for protocol, metric in (("knn", "top1"), ("linear", "top1"), ("segmentation", "miou")):
        result = json.loads((trained / "results" / f"{protocol}-digit_scenes.json").read_text())
        assert 0 <= result["metrics"][metric] <= 100
        assert result["selected"]
        assert len(result["checkpoint"]["sha256"]) == 64
    capsys.readouterr()

    checkpoint = trained / "backbone.safetensors"
    assert main(["eval", "knn", f"checkpoint={checkpoint}", "data=digit_scenes", "data.train_size=64",
                 "data.val_size=32", "data.test_size=32", "out=elsewhere", "precision=fp32"]) == 0  # fmt: skip
    by_run = json.loads((trained / "results" / "knn-digit_scenes.json").read_text())
    by_file = json.loads((home / "elsewhere" / "knn-digit_scenes.json").read_text())
    assert by_run["metrics"] == by_file["metrics"]

    last = trained / "checkpoints" / "last.ckpt"
    scenes = ["data=digit_scenes", "data.train_size=64", "data.val_size=32", "data.test_size=32", "precision=fp32"]
    assert main(["eval", "knn", f"checkpoint={last}", *scenes, "out=last"]) == 0
    assert json.loads((home / "last" / "knn-digit_scenes.json").read_text())["metrics"] == by_run["metrics"]

    assert main(["eval", "knn", "backbone=tiny_resnet", "data=digit_scenes", "data.train_size=64",
                 "data.val_size=32", "data.test_size=32", "out=untrained"]) == 0  # fmt: skip

    capsys.readouterr()
    assert main(["compare", str(trained), "--csv", "a.csv", "--markdown", "a.md", "--html", "a.html"]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert all((home / name).stat().st_size > 50 for name in ("a.csv", "a.md", "a.html"))
    assert main(["report", str(trained)]) == 0
    assert (trained / "report.html").stat().st_size > 10_000


@pytest.mark.command
@pytest.mark.parametrize("method", ["vicreg", "simclr", "simclr_l"])
def test_every_method_by_name(method: str, home: Path) -> None:
    assert main(["pretrain", *quick_overrides(home / "runs", method), "trainer.steps=2", "name=one"]) == 0
    assert (home / "runs" / "one" / "backbone.safetensors").exists()


@pytest.mark.command
@pytest.mark.parametrize("labelled", [True, False])
def test_own_images(labelled: bool, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "my photos", classes=2, each=12)
    if not labelled:
        for i, path in enumerate(sorted((home / "my photos").rglob("*.png"))):
            path.rename(home / "my photos" / f"{i}.png")
        for folder in (home / "my photos").iterdir():
            if folder.is_dir():
                folder.rmdir()
    assert main([
        "pretrain", "data=folder", "data.root=my photos", "data.val_fraction=0.2", "backbone=resnet18",
        "views=small", "method=simclr_l", "trainer.batch_size=4", "trainer.steps=2", "trainer.workers=1", "name=own",
    ]) == 0  # fmt: skip
    capsys.readouterr()
    if labelled:
        assert main(["eval", "knn", "run=runs/own", "data.eval_resize=32", "data.eval_size=32"]) == 0
        assert (home / "runs" / "own" / "results" / "knn-folder.json").exists()
    else:
        assert "knn needs labels" in error_of(capsys, "eval", "knn", "run=runs/own")


@pytest.mark.command
def test_sweeps_make_a_folder_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*quick_overrides(home / "runs"), "trainer.steps=1", "name=swept", "seed=0,1"]
    assert "add -m" in error_of(capsys, "pretrain", *options)
    assert main(["pretrain", "-m", *options]) == 0
    assert sorted(p.name for p in (home / "runs").iterdir()) == ["swept-seed-0", "swept-seed-1"]
    first, second = ((home / "runs" / f"swept-seed-{n}" / "backbone.safetensors").read_bytes() for n in (0, 1))
    assert first != second


@pytest.mark.command
def test_init_starts_from_weights(trained: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [*quick_overrides(home / "runs"), "trainer.steps=1", "name=next"]
    assert main(["pretrain", *quick, f"init={trained}"]) == 0
    capsys.readouterr()
    message = error_of(capsys, "pretrain", *quick, f"init={trained}", "backbone=resnet18")
    assert "tiny_resnet" in message
    assert "resnet18" in message


def test_mistakes_get_one_line_and_status_two(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = quick_overrides(home / "runs")
    (home / "empty").mkdir()
    cases = [
        (["pretrain", *quick, "method.alpha=2"], "alpha must lie between 0 and 1, not 2"),
        (["pretrain", *quick, "method.alfa=0.5"], "did you mean 'method.alpha'"),
        (["pretrain", *quick, "method=vicregx"], "did you mean 'vicreg' or 'vicregl'"),
        (["pretrain", *quick, "trainer.epochs=many"], "trainer.epochs"),
        (["pretrain", *quick, "method.local.gamma=[99,4]"], "99 pairs asked of a large view whose map has 6x6"),
        (["pretrain", *quick, "trainer.batch_size=1"], "batch_size must be at least 2"),
        (["pretrain", *quick, "trainer.batch_size=1000"], "1000 images a step asked of a data set of 64"),
        (["pretrain", *quick, "run=runs/none"], "runs/none does not exist"),
        (["pretrain", *quick, "init=runs/none.safetensors"], "none.safetensors"),
        (["pretrain", *quick, "trainer.device=tpu"], "unknown device 'tpu'"),
        (["pretrain", "data=folder"], "data.root"),
        (["pretrain", "data=folder", "data.root=missing"], "missing"),
        (["pretrain", "data=folder", "data.root=empty"], "empty"),
        (["eval", "knn", "run=runs/none"], "runs/none does not exist"),
        (["eval", "run=runs/none"], "name the protocols first"),
        (["eval", "kmeans", "data=digit_scenes", "backbone=tiny_resnet"], "unknown protocol 'kmeans'"),
        (["eval", "knn"], "say on what"),
        (["eval", "knn", "data=digit_scenes"], "say what to look at"),
        (["compare", "runs/none"], "runs/none"),
        (["report", "empty"], "empty"),
        (["demo", "method=simclr"], "the demo sets it itself"),
    ]  # fmt: skip
    for argv, message in cases:
        assert message in error_of(capsys, *argv), argv
    assert not (home / "runs").exists()  # nothing was begun


@pytest.mark.command
def test_a_corrupt_image_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "photos", classes=2, each=8)
    (home / "photos" / "class0" / "0.png").write_bytes(b"not an image")
    message = error_of(
        capsys, "pretrain", "data=folder", "data.root=photos", "data.val_fraction=0", "backbone=resnet18",
        "views=small", "method=simclr", "trainer.batch_size=16", "trainer.steps=1", "trainer.workers=1",
    )  # fmt: skip
    assert "class0/0.png" in message


@pytest.mark.command
def test_a_checkpoint_of_another_architecture_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(
        capsys, "eval", "knn", f"checkpoint={trained / 'backbone.safetensors'}", "backbone=resnet18",
        "data=digit_scenes",
    )  # fmt: skip
    assert "tiny_resnet" in message
    assert "resnet18" in message


@pytest.mark.command
def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(home: Path) -> None:
    options = [*quick_overrides(home / "runs"), "trainer.epochs=2000", "name=stopped"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_toolkit.cli", "pretrain", *options],
        stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    metrics = home / "runs" / "stopped" / "metrics.csv"
    deadline = time.monotonic() + 150
    try:
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert metrics.exists()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # left alone after a failure it would train on for hours
    assert process.returncode == 130, err
    assert "continue with: ssl-toolkit pretrain run=" in err
    checkpoint = torch.load(home / "runs" / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] >= 1


def test_debug_shows_the_traceback(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--debug", "method=nope"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "pretrain" in capsys.readouterr().out
    for argv in (["--version"], ["pretrain", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 0
