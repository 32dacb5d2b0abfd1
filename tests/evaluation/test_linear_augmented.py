"""The linear probe on random crops: each head as it would be alone, the backbone untouched, processes as one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_toolkit.cli import main
from ssl_toolkit.config import override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import FeatureBank, Outcome
from ssl_toolkit.evaluation import linear_augmented as module
from ssl_toolkit.evaluation.crops import LabelledCrops
from ssl_toolkit.evaluation.heads import Heads
from ssl_toolkit.evaluation.linear_augmented import LinearAugmented, LinearAugmentedConfig
from ssl_toolkit.evaluation.live import Plan
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled
from ssl_toolkit.registry import typed
from tests.criteria.test_distributed import spawn, start
from tests.evaluation.fakes import ArrayDataset
from tests.evaluation.live_data import PREPARATION, WHOLE, ColourNet, live_data, one_colour, run_stopped


def options(**given: Any) -> LinearAugmentedConfig:
    return LinearAugmentedConfig(**{"lrs": [0.03, 1.0], "epochs": 4, "batch_size": 7, "crop": WHOLE, **given})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Heads]:
    return spy(monkeypatch)


def spy(monkeypatch: pytest.MonkeyPatch | None = None) -> list[Heads]:
    """The heads that are evaluated from now on."""
    seen: list[Heads] = []
    original = module.head_ranks

    def noting(heads: Heads, *args: Any) -> Tensor:
        seen.append(heads)
        return original(heads, *args)

    if monkeypatch is None:
        module.head_ranks = noting
    else:
        monkeypatch.setattr(module, "head_ranks", noting)
    return seen


def weights(heads: Heads) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in heads.state_dict().items()}


@pytest.mark.parametrize("head_norm", [False, True])
def test_each_head_is_a_layer_trained_alone(head_norm: bool, trained: list[Heads]) -> None:
    config = options(lrs=[1e38, 0.1, 1.0], weight_decay=0.01, head_norm=head_norm, seed=2)
    data = live_data(ColourNet())
    outcome = LinearAugmented(config).run(data)
    dataset = data.datasets["train"]
    samples = LabelledCrops(dataset, labelled(LabelsConfig(), dataset), WHOLE, PREPARATION, seed=2)
    plan = Plan(24, 7, seed=2)
    for i in (1, 2):
        backbone, layer = ColourNet().eval(), nn.Linear(5, 3)
        norm = nn.BatchNorm1d(5, affine=False) if head_norm else nn.Identity()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=config.lrs[i], momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
        for step in range(24):
            images, labels = samples.batch(plan.keys(step, 48))
            with torch.no_grad():
                features = backbone((images / 255 - 0.5) / 0.25).pooled
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(norm(features)), labels).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(trained[0].weights[i], layer.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trained[0].biases[i], layer.bias, rtol=1e-4, atol=1e-5)
        norm.eval()
        predicted = layer(norm(data.test.pooled)).argmax(1)
        expected = 100 * (predicted == data.test.labels).double().mean()
        assert outcome.grid[i]["test_top1"] == pytest.approx(float(expected), abs=1e-3)
    assert outcome.grid[0] == {"lr": 1e38, "val_top1": None, "test_top1": None, "diverged": True}
    assert [row["diverged"] for row in outcome.grid] == [True, False, False]
    assert any("head_norm" in note for note in outcome.notes) == head_norm


def test_planted_answers_and_chance() -> None:
    right = LinearAugmented(options(epochs=8)).run(live_data(ColourNet()))
    assert right.metrics == {"top1": 100.0}
    chance = LinearAugmented(options(epochs=8)).run(live_data(ColourNet(), shuffled=True))
    assert chance.metrics["top1"] < 70


def test_the_backbone_is_as_before_and_no_graph_goes_through_it() -> None:
    backbone = ColourNet()
    backbone.bn.eval()  # someone froze it
    data = live_data(backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    LinearAugmented(options()).run(data)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert [part.training for part in backbone.modules()] == [True, True, False]
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_running_statistics_are_what_test_images_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    original = module.head_ranks

    def noting(heads: Heads, bank: FeatureBank, norm: nn.Module, *args: Any) -> Tensor:
        modes.append(norm.training)
        return original(heads, bank, norm, *args)

    monkeypatch.setattr(module, "head_ranks", noting)
    LinearAugmented(options(head_norm=True)).run(live_data(ColourNet()))
    assert modes == [False, False]


def test_every_rate_diverged_is_one_line() -> None:
    with pytest.raises(UserError, match=r"linear_augmented: every learning rate diverged .* linear_augmented\.lrs"):
        LinearAugmented(options(lrs=[1e38])).run(live_data(ColourNet()))


def test_training_features_are_not_extracted() -> None:
    protocol = LinearAugmented(options())
    assert set(protocol.reads(live_data(ColourNet()).source)) == {"val", "test"}


def test_a_part_of_the_labels_is_all_that_is_read() -> None:
    class Noting(ArrayDataset):
        def image(self, index: int) -> np.ndarray:
            read.add(index)
            return super().image(index)

    read: set[int] = set()
    plain = one_colour(48, "train")
    train = Noting(plain.images, plain.targets)
    config = options(epochs=30, labels=LabelsConfig(shots=2))
    protocol = LinearAugmented(config)
    outcome = protocol.run(live_data(ColourNet(), train=train))
    assert read == set(labelled(config.labels, train).rows.tolist())
    assert len(read) == 6
    assert outcome.metrics == {"top1": 100.0}
    assert outcome.details["labels"]["images"] == 6
    assert protocol.variant == "2shot"


@pytest.mark.parametrize("head_norm", [False, True])
def test_stopped_and_run_again_is_the_same_to_the_bit(
    head_norm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Heads]
) -> None:
    config = options(head_norm=head_norm)
    expected = LinearAugmented(config).run(live_data(ColourNet()))
    original, calls = module.frozen_features, 0

    def stopping(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 11:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(module, "frozen_features", stopping)
    data = live_data(ColourNet(), state=tmp_path / "state")
    with pytest.raises(KeyboardInterrupt, match="at step 11 of 24; the same command continues it"):
        LinearAugmented(config).run(data)
    assert len(list((tmp_path / "state").iterdir())) == 1
    assert LinearAugmented(config).run(data) == expected
    assert calls == 24
    assert list(tmp_path.iterdir()) == []
    first, second = weights(trained[0]), weights(trained[-1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def distributed(head_norm: bool) -> tuple[Outcome, Heads]:
    seen = spy()
    outcome = LinearAugmented(options(head_norm=head_norm)).run(live_data(ColourNet()))
    return outcome, seen[0]


def worker(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    kept = {}
    for head_norm in (False, True):
        outcome, heads = distributed(head_norm)
        kept[str(head_norm)] = {"grid": outcome.grid, "heads": weights(heads)}
    torch.save(kept, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "head_ranks", module.head_ranks)  # undone after the test
    spawn(worker, 2, str(tmp_path))
    for head_norm in (False, True):
        outcome, heads = distributed(head_norm)
        for rank in range(2):
            kept = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[str(head_norm)]
            assert kept["grid"] == outcome.grid
            for name, value in weights(heads).items():
                torch.testing.assert_close(kept["heads"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.command
def test_a_command_that_is_stopped_goes_on(tmp_path: Path) -> None:
    def argv(out: str) -> list[str]:
        return [
            "eval",
            "linear_augmented",
            "backbone=tiny_resnet",
            "data=digit_scenes",
            *("data.train_size=64", "data.val_size=32", "data.test_size=32"),
            *("linear_augmented.epochs=3", "linear_augmented.batch_size=16", "linear_augmented.labels.fraction=0.5"),
            *("device=cpu", "workers=1", "precision=fp32"),
            override_of("out", tmp_path / out),
        ]

    stopped = run_stopped(argv("stopped"), 3)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped linear probe on random crops at step 3 of 6; the same command continues it" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert list((tmp_path / "stopped").rglob("*.pt"))
    results = []
    for out in ("stopped", "whole"):
        assert main(argv(out)) == 0
        results.append(json.loads((tmp_path / out / "linear_augmented-50pct-digit_scenes.json").read_text()))
    assert not list((tmp_path / "stopped").rglob("*.pt"))
    assert results[0]["grid"] == results[1]["grid"]
    assert results[0]["config"] == results[1]["config"]
    assert results[0]["details"]["labels"]["of"] == 64


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lrs": []}, "lrs must"),
        ({"epochs": 0}, "epochs and batch_size"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed must not be negative"),
        ({"crop": {"kind": "none"}}, r"unknown crop\.kind"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_bad_options(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(LinearAugmentedConfig, given, "linear_augmented")


def test_labels_outside_the_classes_stop_before_any_work() -> None:
    data = live_data(ColourNet())
    data.datasets["train"].targets[3] = 9  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="arrays train: image 3 has label 9, outside the 3 classes"):
        LinearAugmented(options()).check(data.source, data.datasets)
