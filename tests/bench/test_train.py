"""``bench train``: forms of a step against each other, and where the time of a training goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.bench import suite_options
from ssl_toolkit.bench.step import StepConfig, build, method_config, random_views
from ssl_toolkit.bench.train import PHASES, Clock, timed_step
from ssl_toolkit.cli import main
from ssl_toolkit.errors import UserError
from tests.bench.helpers import TINY


def test_forms_and_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "train", *TINY["train"], "contenders=fp32,bf16,channels_last,accumulate"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    steps, shares = json.loads((tmp_path / "bench-train.json").read_text())["comparisons"]
    assert [row["name"] for row in steps["contenders"]] == ["ours", "fp32", "bf16", "fp32, channels_last", "in 2 parts"]
    for row in steps["contenders"]:
        assert row["items_per_second"] == pytest.approx(4 / row["median_seconds"])
        assert row["resident_bytes"] > 0
    assert "step of tiny_resnet, 2x48, batch 4" in printed
    assert "torch engine, 0 workers" in printed
    assert set(shares["seconds"]) == set(PHASES)
    assert all(seconds > 0 for seconds in shares["seconds"].values())
    assert shares["items_per_second"] == pytest.approx(2 * 4 / sum(shares["seconds"].values()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cases=nope", "unknown case 'nope'"),
        ("contenders=nope", "unknown contender 'nope'"),
        ("sizes.resnet18.backbone=nope", "unknown backbone 'nope'"),
        ("sizes.resnet18.batch_size=1", "batch_size of a case must be at least 2"),
        ("accumulate=3", "accumulate must divide the batch_size of resnet18, 128"),
        ("images=100", "images must be at least 128, the batch_size of resnet18"),
        ("steps=0", "steps must be at least 1"),
    ],
)
def test_bad_options_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite_options("train", [override])


def test_a_step_taken_apart_is_a_step() -> None:
    options = StepConfig(backbone=BackboneConfig(name="tiny_resnet"), batch_size=4, image_size=48, head=[8, 8])
    batch = random_views(4, 48, 0)
    weights = []
    for apart in (False, True):
        module = build(options, method_config(options, "vicregl"), torch.device("cpu"))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        if apart:
            timed_step(module, optimizer, batch, torch.float32, Clock(torch.device("cpu")))
        else:
            module.training_step(batch, 0)["loss"].backward()
            optimizer.step()
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights))
