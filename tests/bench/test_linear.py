"""``bench linear``: what is timed is what the protocols do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.bench import suite_options
from ssl_toolkit.bench.linear import LRS, LinearBenchConfig, ProbeStep
from ssl_toolkit.cli import main
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.linear_augmented import LinearAugmentedConfig
from tests.bench.helpers import TINY


def test_seven_rates_against_one_and_the_fast_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "linear", *TINY["linear"]]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    probe, sgd, lbfgs = json.loads((tmp_path / "bench-linear.json").read_text())["comparisons"]
    assert [row["name"] for row in probe["contenders"]] == ["1 lr", "7 lrs"]
    assert [row["name"] for row in sgd["contenders"]] == ["side by side", "one by one"]
    assert [row["name"] for row in lbfgs["contenders"]] == ["ours", "scikit-learn"]
    assert all(row["median_seconds"] > 0 for part in (probe, sgd, lbfgs) for row in part["contenders"])
    assert "a step of tiny_resnet, 32 px, batch 4, 3 classes, fp32" in printed
    assert "at most 1.2 times one" in printed


def test_the_fast_forms_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "linear", *TINY["linear"], "cached=false"]) == 0
    assert len(json.loads((tmp_path / "bench-linear.json").read_text())["comparisons"]) == 1


def test_a_step_trains_every_head_and_nothing_else() -> None:
    options = LinearBenchConfig(backbone=BackboneConfig(name="tiny_resnet"), image_size=32, classes=3)
    batch = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    step = ProbeStep(options, LRS, batch, torch.float32)
    before = [p.clone() for p in step.backbone.parameters()]
    step()
    assert all(bool(weight.any()) for weight in step.probe.heads.weights)
    assert len(step.probe.heads.weights) == 7
    assert all(torch.equal(a, b) for a, b in zip(before, step.backbone.parameters()))
    held = sum(p.numel() for p in step.backbone.parameters()) + sum(b.numel() for b in step.backbone.buffers())
    assert step.resident() >= 4 * (held + 2 * 7 * 3 * 129)
    assert set(LRS) < set(LinearAugmentedConfig().lrs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classes=0", "classes must be 1 or more"),
        ("image_size=4", "image_size must be at least 8"),
        ("cached_images=3", "cached_images must be at least 10"),
    ],
)
def test_bad_options_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite_options("linear", [override])


def test_an_unknown_backbone_stops_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "linear", *TINY["linear"], "backbone.name=resnet5"]) == 2
    assert "unknown backbone 'resnet5'" in " ".join(capsys.readouterr().err.split())
