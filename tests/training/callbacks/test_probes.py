"""Probes: right by brute force, resumed exactly, and unknown to the run they watch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ssl_toolkit import training
from ssl_toolkit.backbones import read_backbone
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Preparation
from ssl_toolkit.training.callbacks import BestValue, LinearProbe, Schedule, ValidationProbe
from tests.helpers import TinyBackbone
from tests.test_cli import write_photos
from tests.training.callbacks.helpers import FakeTrainer, pretrain, rows
from tests.training.test_views_in_training import run_on

OFF = ["monitor.linear=false", "monitor.knn_every=null"]


class Module:
    """What a probe reads of a Lightning module."""

    device = torch.device("cpu")

    def __init__(self, method: Any = None) -> None:
        self.method = method


class Labels(NamedTuple):
    label: torch.Tensor


def test_the_run_does_not_know_of_probes(tmp_path: Path) -> None:
    probed, alone = pretrain(tmp_path / "a"), pretrain(tmp_path / "b", *OFF)
    first, second = (load_file(run / "backbone.safetensors") for run in (probed, alone))
    assert all(torch.equal(first[key], second[key]) for key in first)
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (probed, alone)]
    assert all(torch.equal(value, states[1]["state_dict"][key]) for key, value in states[0]["state_dict"].items())
    with_labels, without = rows(probed), rows(alone)
    assert [row["loss"] for row in with_labels] == [row["loss"] for row in without]
    assert "linear_view_top1" in with_labels[0]
    assert "linear_view_top1" not in without[0]


def clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes, far apart in some of 8 dimensions of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    centre = torch.nn.functional.one_hot(label, 8) * 6.0
    return (centre + torch.randn(count, 8, generator=generator)) * torch.logspace(-4, 4, 8), label


def step(probe: LinearProbe, seed: int) -> None:
    x, label = clusters(32, seed)
    probe.on_train_batch_end(FakeTrainer(), Module(), {"pooled": x}, Labels(label), 0)  # type: ignore[arg-type]


def test_the_linear_probe_learns() -> None:
    probe = LinearProbe(8, 3)
    probe.on_train_start(FakeTrainer(), Module())  # type: ignore[arg-type]
    for seed in range(300):
        step(probe, seed)
    x, label = clusters(200, 1000)
    assert (probe.predict(x).argmax(1) == label).float().mean() > 0.97
    assert 50 < probe.columns()["linear_view_top1"] < 100  # of all steps, the first ones too
    assert probe.columns() == {}
    step(probe, 301)
    assert probe.columns()["linear_view_top1"] > 90


def test_the_linear_probe_resumes_exactly() -> None:
    whole = LinearProbe(8, 3)
    whole.on_train_start(FakeTrainer(), Module())  # type: ignore[arg-type]
    for seed in range(5):
        step(whole, seed)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = LinearProbe(8, 3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.on_train_start(FakeTrainer(), Module())  # type: ignore[arg-type]
    for seed in range(5, 9):
        step(whole, seed)
        step(resumed, seed)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    assert torch.equal(whole.norm.running_var, resumed.norm.running_var)  # type: ignore[arg-type]
    assert whole.columns() == resumed.columns()


def test_a_failed_step_teaches_nothing() -> None:
    probe = LinearProbe(8, 3)
    probe.on_train_batch_end(FakeTrainer(), Module(), {"pooled": None}, Labels(torch.zeros(2)), 0)  # type: ignore[arg-type]
    assert not probe.layer.weight.any()
    assert probe.columns() == {}


def test_knn_accuracy_by_brute_force(tmp_path: Path) -> None:
    run = pretrain(tmp_path)
    config = training.read_run_config(run)
    backbone, _ = read_backbone(run / "backbone.safetensors")
    backbone.eval()
    features, labels = {}, {}
    for split in ("train", "val"):
        data = build_dataset(config.data, split)
        images = np.stack([data.image(i) for i in range(len(data))]) / 255  # as large as they are evaluated
        assert images.shape[1] == data.config.eval_size == data.config.eval_resize
        normal = (images - np.array(data.config.mean)) / np.array(data.config.std)
        with torch.no_grad():
            pooled = backbone(torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2)).pooled.double().numpy()
        features[split] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        labels[split] = data.labels()
    right = 0
    for query, label in zip(features["val"], labels["val"]):
        cosine = features["train"] @ query
        votes = np.zeros(10)
        for near in np.argsort(-cosine)[:20]:
            votes[labels["train"][near]] += np.exp(cosine[near] / 0.07)
        right += int(votes.argmax() == label)
    assert float(rows(run)[-1]["knn_top1"]) == pytest.approx(100 * right / len(labels["val"]))


def probe_of(tmp_path: Path, count: int = 9) -> ValidationProbe:
    data = compose_config("pretrain", ["data.train_size=20", "data.val_size=12", "data.test_size=8"]).data
    preparation = Preparation([0.5] * 3, [0.25] * 3, 64, 64, batch_size=5)
    splits = (build_dataset(data, "train"), build_dataset(data, "val"))
    quiet = Console(quiet=True)
    return ValidationProbe(
        *splits, count, preparation, Schedule(1, 4, 8, 1), precision=torch.float32, linear=None, seed=0, console=quiet
    )


def test_the_backbone_and_random_numbers_are_left_as_they_were(tmp_path: Path) -> None:
    method = torch.nn.Module()
    method.backbone = TinyBackbone().train()
    method.backbone.net[1].eval()  # a part that someone froze
    modes = [part.training for part in method.modules()]
    state = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    probe = probe_of(tmp_path)
    probe.on_train_batch_end(FakeTrainer(3), Module(method), None, None, 0)  # type: ignore[arg-type]
    assert probe.found == {}
    probe.on_train_batch_end(FakeTrainer(4), Module(method), None, None, 0)  # type: ignore[arg-type]
    assert set(probe.found) == {"knn_top1"}
    assert probe.seconds > 0
    assert probe._images is not None
    assert [len(images) for images in probe._images] == [9, 9]
    assert [part.training for part in method.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_features_that_are_not_finite_cost_the_accuracy_only(tmp_path: Path) -> None:
    method = torch.nn.Module()
    method.backbone = TinyBackbone()
    torch.nn.init.constant_(method.backbone.net[0].weight, float("nan"))
    probe = probe_of(tmp_path)
    probe.console = Console(record=True, width=300)
    probe.on_train_batch_end(FakeTrainer(4), Module(method), None, None, 0)  # type: ignore[arg-type]
    assert probe.found == {}
    assert "no accuracy at step 4: the backbone gives nan" in probe.console.export_text()


def test_validation_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    write_photos(tmp_path / "train", classes=2, each=8)
    write_photos(tmp_path / "val", classes=2, each=8)
    victim = sorted((tmp_path / "val").rglob("*.png"))[3]
    victim.write_bytes(victim.read_bytes()[:60])
    run, text = run_on(tmp_path, tmp_path / "runs")
    assert f"{victim}" in text
    assert "left out" in text
    assert 0 <= float(rows(run)[-1]["knn_top1"]) <= 100


@pytest.mark.parametrize(
    ("flat", "overrides", "said"),
    [
        (True, [], "none: folder has no labels"),
        (False, ["data.val_fraction=0"], "none on validation images"),
    ],
)
def test_probes_are_left_out_where_they_cannot_be(flat: bool, overrides: list[str], said: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", classes=2, each=12)
    root = tmp_path / "photos"
    if flat:
        for i, path in enumerate(sorted(root.rglob("*.png"))):
            path.rename(root / f"{i}.png")
        for folder in root.glob("class*"):
            folder.rmdir()
    run, text = run_on(root, tmp_path / "runs", *overrides)
    assert said in text
    assert "knn_top1" not in rows(run)[0]
    with pytest.raises(UserError, match=r"monitor\.best=knn is measured on labelled validation images"):
        run_on(root, tmp_path / "runs", *overrides, "monitor.best=knn", override_of("name", "other"))


def values(best: BestValue, losses: list[float | None]) -> list[float | None]:
    """``monitor/best`` after each step; None is a failed step."""
    found = []
    trainer = FakeTrainer()
    for loss in losses:
        best.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
        assert "monitor/best" not in trainer.callback_metrics
        trainer.global_step += 1
        failed = loss is None
        outputs = {"failure": "why" if failed else None, "loss": torch.tensor(float("nan") if failed else loss)}
        best.on_train_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]
        value = trainer.callback_metrics.get("monitor/best")
        found.append(None if value is None else float(value))
    return found


def test_the_best_loss_is_the_mean_of_an_epoch() -> None:
    best = BestValue("loss", Schedule(1, 3, 8), None)
    assert values(best, [1.0, 2.0, 6.0, 4.0, None, 5.0, None, None]) == [None, None, -3.0, None, None, -4.5, None, None]


def test_the_best_loss_resumes_within_an_epoch() -> None:
    best = BestValue("loss", Schedule(1, 3, 9), None)
    assert values(best, [1.0, 2.0]) == [None, None]
    resumed = BestValue("loss", Schedule(1, 1, 9), None)  # the next step ends the epoch
    resumed.load_state_dict(best.state_dict())
    assert values(resumed, [6.0]) == [-3.0]


def test_the_best_accuracy_is_that_of_the_probe(tmp_path: Path) -> None:
    probe = probe_of(tmp_path)
    best = BestValue("knn", Schedule(1, 4, 8, 1), probe)
    trainer = FakeTrainer(4)
    probe.found = {"knn_top1": 41.5, "linear_top1": 3.0}
    best.on_train_batch_end(trainer, None, {}, None, 0)  # type: ignore[arg-type]
    assert float(trainer.callback_metrics["monitor/best"]) == 41.5
    best.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    probe.found = {}
    best.on_train_batch_end(trainer, None, {}, None, 0)  # type: ignore[arg-type]
    assert trainer.callback_metrics == {}
