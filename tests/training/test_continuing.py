"""Resume, init and export: what each takes, and what it refuses in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ssl_toolkit import commands, training
from ssl_toolkit.backbones import read_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.callbacks import TrainingBar
from ssl_toolkit.training.checkpoints import OURS, checkpoint_path, read_checkpoint
from ssl_toolkit.training.fingerprint import differences, flat, is_free
from ssl_toolkit.training.run import initial_weights, locked
from tests.helpers import quick_overrides
from tests.training.killing import checkpoints_differ, metrics


def photos(folder: Path) -> Path:
    """24 images to train on and 2 others, colourful noise, each of another size."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 2)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / split / f"{i:02d}.png"), rng.integers(0, 255, (40, 40 + i, 3), dtype=np.uint8))
    return folder


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the training."""
    monkeypatch.setattr(commands, "write_report", lambda run: run)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of images that was stopped at step 6 of 8, with checkpoints of steps 3 and 6."""
    home = tmp_path_factory.mktemp("home")
    options = [
        "method=vicreg", "backbone=tiny_resnet", "data=folder", override_of("data.root", photos(home / "photos")),
        "views=small", "trainer.epochs=3", "trainer.batch_size=8", "trainer.workers=0", "trainer.precision=fp32",
        "trainer.keep_every=1", "monitor.knn_every=null", "monitor.linear=false", override_of("runs_dir", home),
        "name=run",
    ]  # fmt: skip
    original = TrainingBar.on_train_batch_end

    def stopping(self: TrainingBar, trainer: object, *args: object) -> None:
        original(self, trainer, *args)  # type: ignore[arg-type]
        if trainer.global_step == 7:  # type: ignore[attr-defined]
            raise RuntimeError("as planned")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBar, "on_train_batch_end", stopping)
        with pytest.raises(RuntimeError, match="as planned"):
            main(["pretrain", *options])
    assert read_checkpoint(checkpoint_path(home / "run", "last"))["global_step"] == 6
    return home / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, and of its images, that may be spoilt."""
    subprocess.run(["cp", "-r", str(stopped), str(stopped.parent / "photos"), str(tmp_path)], check=True)
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    config.data.root = str(tmp_path / "photos")
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command says that has to fail by one line, with status 2, before any work."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").strip()


def test_an_edited_config_is_refused_naming_keys_and_values(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.load(run / "config.yaml")
    config.optimizer.lr = 0.5
    config.views.groups[0].scale = [0.1, 1.0]
    config.trainer.epochs = 4
    config.trainer.log_every = 1  # may
    OmegaConf.save(config, run / "config.yaml")
    said = refusal(capsys, "pretrain", f"run={run}")
    assert said.startswith(f"{checkpoint_path(run, 'last')} is of another config: ")
    assert "optimizer.lr was 0.0015, is 0.5" in said
    assert "trainer.epochs was 3, is 4" in said
    assert "views.groups.0.scale was [" in said
    assert "log_every" not in said
    assert "put config.yaml back, or start a new run with init=" in said


def test_other_images_are_refused_and_the_same_elsewhere_are_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = run.parent / "photos" / "train"
    cv2.imwrite(str(images / "99.png"), np.zeros((40, 40, 3), np.uint8))
    said = refusal(capsys, "pretrain", f"run={run}")
    assert "last.ckpt is of 24 training images, there are 25 now: put the data back as it was" in said
    (images / "00.png").unlink()
    said = refusal(capsys, "pretrain", f"run={run}")
    assert "is of other training images, by their names and sizes or contents (fingerprint was" in said
    (images / "99.png").unlink()
    said = refusal(capsys, "pretrain", f"run={run}")
    assert "24 training images, there are 23 now" in said
    photos(run.parent / "moved")
    assert main(["pretrain", f"run={run}", f"data.root={run.parent / 'moved'}", "trainer.workers=1"]) == 0
    assert (run / "backbone.safetensors").is_file()
    assert "is finished; start a new run with init=" in refusal(capsys, "pretrain", f"run={run}")


def test_only_what_changes_no_number_may_be_given(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "pretrain", f"run={run}", "optimizer.lr=1")
    assert "optimizer.lr cannot be given with run=: a resumed run keeps its config" in said
    assert f"use init={run} to start a new run from its weights" in said
    assert "method cannot be given with run=" in refusal(capsys, "pretrain", f"run={run}", "method=simclr")
    assert "trainer.epochs cannot be given" in refusal(capsys, "pretrain", f"run={run}", "trainer.epochs=9")
    said = refusal(capsys, "pretrain", f"run={run}", "trainer.precision=bf16")
    assert "was trained in float32, trainer.precision means bfloat16 here; give trainer.precision=fp32" in said
    for key in ("trainer.workers", "trainer.checkpoint_every", "monitor.knn_every", "launcher.name", "data.root"):
        assert is_free(key)
    for key in ("trainer.batch_size", "seed", "trainer.steps", "data.val_fraction", "views.groups", "backbone.name"):
        assert not is_free(key)


def test_another_number_of_processes_is_said_to_change_the_last_digits(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_path(run, "last")
    stored = read_checkpoint(path)
    stored[OURS]["near"] |= {"processes": 8, "device": "cuda", "torch": "2.0"}
    torch.save(stored, path)
    assert main(["pretrain", f"run={run}", "trainer.keep_every=2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "numbers will differ in their last digits from those of a run without a stop: device was cuda, is" in said
    assert "processes was 8, is 1; torch was 2.0, is 2." in said


def test_damage_is_found_before_any_work(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint_path(run, "last")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    said = refusal(capsys, "pretrain", f"run={run}")
    assert said.startswith(f"{path} is damaged or no checkpoint (")
    epoch = checkpoint_path(run, "epoch-0001")
    others = "the run also has best, epoch-0001, epoch-0002: to continue from one of them"
    assert f"{others}, cp {checkpoint_path(run, 'best')} {path}" in said
    subprocess.run(["cp", str(epoch), str(path)], check=True)
    assert main(["pretrain", f"run={run}"]) == 0
    path.unlink()
    (run / "backbone.safetensors").unlink()
    assert f"there is no checkpoint {path}; the run also has" in refusal(capsys, "pretrain", f"run={run}")


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run=nowhere does not exist" in refusal(capsys, "pretrain", "run=nowhere")
    assert "has no config.yaml: not a run folder" in refusal(capsys, "pretrain", f"run={tmp_path}")


def test_two_processes_cannot_train_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready, hold = os.pipe()
    other = os.fork()
    if other == 0:
        with locked(run):
            os.write(hold, b".")
            time.sleep(600)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"."
        said = refusal(capsys, "pretrain", f"run={run}")
        assert f"run={run} is being trained by process {other} on {os.uname().nodename}: wait for it" in said
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    with locked(run):  # a lock does not outlive its process
        pass


def test_a_disk_that_fills_up_and_is_freed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole run on a disk that is full from step 2 to 6: as with room, but for what is said."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    original = TrainingBar.on_train_batch_end

    def fill(self: TrainingBar, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        ballast = disk / "ballast"
        if trainer.global_step == 2:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            assert shutil.disk_usage(disk).free == 0
        elif trainer.global_step == 6:
            ballast.unlink()

    try:
        options = ["trainer.checkpoint_every=3", "trainer.log_every=1", "name=run", "monitor.knn_every=1"]
        assert main(["pretrain", *quick_overrides(tmp_path, "vicreg"), *options]) == 0
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingBar, "on_train_batch_end", fill)
            assert main(["pretrain", *quick_overrides(disk, "vicreg"), *options]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if "No space left" in line]
        assert [line.split(":")[0] for line in said] == ["checkpoint of step 3 failed", "checkpoint of step 4 failed"]
        runs = [tmp_path / "run", disk / "run"]
        assert checkpoints_differ(*(checkpoint_path(run, "last") for run in runs)) is None
        assert metrics(runs[0] / "metrics.csv") == metrics(runs[1] / "metrics.csv")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_export_of_a_run_that_is_not_finished(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    subprocess.run(["rm", "-r", str(run.parent / "photos")], check=True)  # the data is not needed
    for name, step in (("last", 6), ("epoch-0001", 3)):
        assert main(["export", str(run), "--checkpoint", name]) == 0
        stored = read_checkpoint(checkpoint_path(run, name))
        assert stored["global_step"] == step
        weights = load_file(run / f"backbone-{name}.safetensors")
        assert weights
        for key, value in weights.items():
            assert torch.equal(value, stored["state_dict"][f"method.backbone.{key}"])
        backbone, preprocessing = read_backbone(run / f"backbone-{name}.safetensors")
        assert backbone.config.name == "tiny_resnet"
        assert preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert not (run / "backbone.safetensors").exists()  # it is not finished by that
    assert main(["export", str(run), "--out", str(tmp_path / "mine.safetensors")]) == 0
    mine, last = (load_file(path) for path in (tmp_path / "mine.safetensors", run / "backbone-last.safetensors"))
    assert all(torch.equal(mine[key], last[key]) for key in last)


def test_export_is_as_what_the_run_itself_exports(run: Path) -> None:
    assert main(["pretrain", f"run={run}"]) == 0
    assert main(["export", str(run)]) == 0
    ours, own = (load_file(run / name) for name in ("backbone-last.safetensors", "backbone.safetensors"))
    assert ours.keys() == own.keys()
    assert all(torch.equal(ours[key], own[key]) for key in own)


def test_export_refuses(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "unknown checkpoint 'bets': did you mean 'best'" in refusal(
        capsys, "export", str(run), "--checkpoint", "bets"
    )
    assert "run=nowhere does not exist" in refusal(capsys, "export", "nowhere")
    assert "name a .safetensors file" in refusal(capsys, "export", str(run), "--out", str(tmp_path / "x.pt"))
    own = run / "backbone.safetensors"
    assert "marks a run as finished" in refusal(capsys, "export", str(run), "--out", str(own))
    subprocess.run(["rm", "-r", str(run / "checkpoints")], check=True)
    assert "has no checkpoint yet" in refusal(capsys, "export", str(run))


def test_init_says_what_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not finished: go on with it \(run=.*\), or start .* init=.*last\.ckpt"):
        initial_weights(run)
    assert initial_weights(checkpoint_path(run, "last")) == checkpoint_path(run, "last")
    with pytest.raises(UserError, match="does not exist: give a finished run"):
        initial_weights(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no backbone\.safetensors"):
        initial_weights(tmp_path / "empty")


def test_init_starts_from_exported_weights(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run)]) == 0
    weights = run / "backbone-last.safetensors"
    options = [*quick_overrides(tmp_path, "vicreg"), "backbone=tiny_resnet"]
    parts = training.assemble(compose_config("pretrain", [*options, override_of("init", weights)]))
    started = parts.method.backbone.state_dict()
    assert all(torch.equal(started[key], value) for key, value in load_file(weights).items())
    last = override_of("init", checkpoint_path(run, "last"))
    again = training.assemble(compose_config("pretrain", [*options, last])).method.backbone.state_dict()
    assert all(torch.equal(again[key], value) for key, value in started.items())


def test_flat_names_and_differences() -> None:
    config = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "g": [{"s": 1}, {"s": 2}], "empty": {}}
    assert flat(config) == {"a": 1, "b.c": [1, 2], "b.d.e": None, "g.0.s": 1, "g.1.s": 2}
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}) == ["b was 2, is 3", "c was not set, is None"]
