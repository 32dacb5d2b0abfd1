"""Fine-tuning against a plain loop; the source untouched, every rate as it would be alone, processes as one."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.config import override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Outcome
from ssl_toolkit.evaluation import finetune as module
from ssl_toolkit.evaluation.crops import LabelledCrops
from ssl_toolkit.evaluation.finetune import (
    Classifier,
    Finetune,
    FinetuneConfig,
    backbone_copy,
    finetune_optimizer,
)
from ssl_toolkit.evaluation.live import Plan
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled
from ssl_toolkit.registry import typed
from tests.criteria.test_distributed import spawn, start
from tests.data.trees import cub200
from tests.evaluation.live_data import PREPARATION, WHOLE, ColourNet, live_data, run_stopped


def options(**given: Any) -> FinetuneConfig:
    plain = {"lrs": [0.3], "epochs": 4, "batch_size": 7, "batchnorm": "frozen", "crop": WHOLE}
    return FinetuneConfig(**{**plain, **given})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    """The networks whose accuracy is measured from now on, each for two splits."""
    seen: list[Classifier] = []
    original = module._ranks

    def noting(network: Classifier, *args: Any) -> Tensor:
        seen.append(network)
        return original(network, *args)

    monkeypatch.setattr(module, "_ranks", noting)
    return seen


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_is_a_plain_loop(optimizer: str, batchnorm: str, trained: list[Classifier]) -> None:
    rates = {"sgd": [0.3], "adamw": [0.01]}[optimizer]
    config = options(
        lrs=rates,
        optimizer=optimizer,
        nesterov=optimizer == "sgd",
        layer_decay=0.5,
        weight_decay=0.1,
        label_smoothing=0.2,
        warmup_epochs=1.0,
        batchnorm=batchnorm,
        seed=3,
    )
    data = live_data(ColourNet())
    Finetune(config).run(data)
    dataset = data.datasets["train"]
    samples = LabelledCrops(dataset, labelled(LabelsConfig(), dataset), WHOLE, PREPARATION, seed=3)
    backbone, head, plan = ColourNet(), nn.Linear(5, 3), Plan(24, 7, seed=3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if batchnorm == "frozen":
        backbone.bn.eval()
    parts = [
        (head.weight, 1, 0.1),
        (head.bias, 1, 0.0),
        (backbone.bn.weight, 0.5, 0.0),
        (backbone.bn.bias, 0.5, 0.0),
        (backbone.stem.weight, 0.25, 0.1),
    ]
    groups = [{"params": [p], "lr": rates[0] * share, "weight_decay": decay} for p, share, decay in parts]
    plain = torch.optim.SGD(groups, momentum=0.9, nesterov=True) if optimizer == "sgd" else torch.optim.AdamW(groups)
    warm = [(step + 1) / 7 for step in range(6)]
    cosine = [0.5 + 0.5 * math.cos(math.pi * step / 18) for step in range(18)]
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: [*warm, *cosine, 0.0][step])
    for step in range(24):
        images, labels = samples.batch(plan.keys(step, 48))
        plain.zero_grad()
        logits = head(backbone((images / 255 - 0.5) / 0.25).pooled)
        nn.functional.cross_entropy(logits, labels, label_smoothing=0.2).backward()
        plain.step()
        schedule.step()
    got = trained[0].state_dict()
    for prefix, part in (("backbone.", backbone), ("head.", head)):
        for name, value in part.state_dict().items():
            torch.testing.assert_close(got[prefix + name], value, rtol=1e-3, atol=1e-4)
    assert not torch.equal(got["backbone.stem.weight"], ColourNet().stem.weight)


def test_planted_answers_and_chance() -> None:
    assert Finetune(options(batchnorm="train", epochs=8)).run(live_data(ColourNet())).metrics == {"top1": 100.0}
    chance = Finetune(options(epochs=2)).run(live_data(ColourNet(), shuffled=True))
    assert chance.metrics["top1"] < 70


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_the_source_is_untouched(batchnorm: str, trained: list[Classifier]) -> None:
    backbone = ColourNet().requires_grad_(False).eval()
    data, before = live_data(backbone), weights(backbone)
    Finetune(options(batchnorm=batchnorm)).run(data)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert not any(part.training for part in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    mine = trained[0].backbone
    assert mine is not backbone
    assert not torch.equal(mine.stem.weight, backbone.stem.weight)  # type: ignore[union-attr]
    same = torch.equal(mine.bn.running_mean, backbone.bn.running_mean)  # type: ignore[union-attr, arg-type]
    assert same == (batchnorm == "frozen")


def test_rates_are_trained_one_after_another_and_one_may_diverge(trained: list[Classifier]) -> None:
    data = live_data(ColourNet())
    outcome = Finetune(options(lrs=[0.1, 1e30, 0.3], batchnorm="train", epochs=12)).run(data)
    assert [row["diverged"] for row in outcome.grid] == [False, True, False]
    assert outcome.grid[1] == {"lr": 1e30, "head_lr": 1e30, "val_top1": None, "test_top1": None, "diverged": True}
    assert outcome.selected["lr"] in (0.1, 0.3)
    together = trained[-1]
    Finetune(options(lrs=[0.3], batchnorm="train", epochs=12)).run(data)
    assert all(torch.equal(a, b) for a, b in zip(together.state_dict().values(), trained[-1].state_dict().values()))
    with pytest.raises(UserError, match=r"finetune: every learning rate diverged .* finetune\.lrs"):
        Finetune(options(lrs=[1e30], batchnorm="train", epochs=12)).run(data)


def test_the_head_may_have_a_rate_of_its_own() -> None:
    network = Classifier(ColourNet(), 3)
    config = options(head_lr=0.08, weight_decay=0.5)
    groups = finetune_optimizer(network, config, 0.03).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    assert rates[id(network.head.weight)] == (0.08, 0.5)
    assert rates[id(network.head.bias)] == (0.08, 0.0)
    assert rates[id(network.backbone.stem.weight)] == (0.03, 0.5)  # type: ignore[union-attr]
    assert rates[id(network.backbone.bn.weight)] == (0.03, 0.0)  # type: ignore[union-attr]
    outcome = Finetune(config).run(live_data(ColourNet()))
    assert outcome.selected == {"lr": 0.3, "head_lr": 0.08}


def test_drop_path_is_of_the_copy_alone() -> None:
    source = create_backbone({"name": "convnext_atto", "in_channels": 3})
    copied = backbone_copy(source, 0.3)
    assert copied.config == dataclasses.replace(source.config, drop_path=0.3)
    rates = [part.drop_prob for part in copied.modules() if type(part).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), copied.state_dict().values()))
    with pytest.raises(UserError, match=r"finetune\.drop_path=0\.3: dla46_c has no stochastic depth"):
        backbone_copy(create_backbone("dla46_c"), 0.3)


def test_stopped_in_the_second_rate_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Classifier]
) -> None:
    config = options(lrs=[0.1, 0.3], batchnorm="train")
    expected = Finetune(config).run(live_data(ColourNet()))
    calls, original = 0, Classifier.forward

    def stopping(self: Classifier, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 24 + 10:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Classifier, "forward", stopping)
    data = live_data(ColourNet(), state=tmp_path / "state")
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped fine-tuning, lr 0\.3 at step 10 of 24; the same command cont"
    ):
        Finetune(config).run(data)
    assert sorted(path.name.split("-")[1] for path in (tmp_path / "state").iterdir()) == ["lr0.1", "lr0.3"]
    assert Finetune(config).run(data) == expected
    assert calls == 48  # no step was done twice
    assert list(tmp_path.iterdir()) == []
    first, second = weights(trained[2]), weights(trained[-1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_part_of_the_labels() -> None:
    protocol = Finetune(options(epochs=40, labels=LabelsConfig(fraction=0.1)))
    outcome = protocol.run(live_data(ColourNet()))
    assert protocol.variant == "10pct"
    assert outcome.details["labels"]["images"] == 6
    assert outcome.metrics == {"top1": 100.0}


def distributed() -> list[tuple[Outcome, dict[str, Tensor]]]:
    """Outcomes and weights, and with these the ranks of the test images."""
    seen: list[dict[str, Tensor]] = []
    original = module._ranks

    def noting(network: Classifier, *args: Any) -> Tensor:
        found = original(network, *args)
        seen.append({**weights(network), "ranks": found})
        return found

    module._ranks = noting
    results = []
    for batchnorm in ("frozen", "train"):
        config = options(lrs=[0.01], batchnorm=batchnorm, epochs=2, label_smoothing=0.1)
        outcome = Finetune(config).run(live_data(ColourNet(), shuffled=True))
        results.append((outcome, seen[-1]))
    return results


def worker(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    kept = [{"grid": outcome.grid, "weights": found} for outcome, found in distributed()]
    torch.save(kept, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ranks", module._ranks)  # undone after the test
    spawn(worker, 2, str(tmp_path))
    (outcome, expected), _ = distributed()
    assert expected["ranks"].max() == 2
    kept = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for frozen, normed in kept:
        assert frozen["grid"] == outcome.grid
        for name, value in expected.items():
            torch.testing.assert_close(frozen["weights"][name], value, rtol=1e-4, atol=1e-5)
        for name, value in kept[0][1]["weights"].items():
            assert torch.equal(value, normed["weights"][name])  # with trained BatchNorm they agree with each other
        assert normed["grid"] == kept[0][1]["grid"]


@pytest.mark.command
def test_a_command_that_is_stopped_goes_on(tmp_path: Path) -> None:
    def argv(out: str) -> list[str]:
        return [
            "eval",
            "finetune",
            "backbone=tiny_resnet",
            "data=digit_scenes",
            *("data.train_size=48", "data.val_size=16", "data.test_size=16"),
            *("finetune.epochs=2", "finetune.batch_size=16", "finetune.labels.shots=3", "device=cpu", "precision=fp32"),
            override_of("out", tmp_path / out),
        ]

    stopped = run_stopped(argv("stopped"), 3)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped fine-tuning, lr 0.1 at step 1 of 2; the same command continues it" in stopped.stderr
    results = []
    for out in ("stopped", "whole"):
        assert main(argv(out)) == 0
        results.append(json.loads((tmp_path / out / "finetune-3shot-digit_scenes.json").read_text()))
    assert not list((tmp_path / "stopped").rglob("*.pt"))
    assert results[0]["grid"] == results[1]["grid"]
    assert [row["lr"] for row in results[0]["grid"]] == [0.3, 0.1, 0.03]


@pytest.mark.command
def test_the_command_for_cub_on_a_tiny_tree(tmp_path: Path) -> None:
    """As documented, but for the backbone and the number of epochs."""
    cub200(tmp_path / "data", per_class=4)
    argv = [
        "eval",
        "finetune",
        "backbone=tiny_resnet",
        "data=cub200",
        override_of("data.root", tmp_path / "data"),
        *("data.eval_size=448", "data.eval_resize=600", "finetune.crop.kind=random", "finetune.batch_size=64"),
        *("finetune.lrs=[0.01]", "finetune.nesterov=true", "finetune.weight_decay=5e-4"),
        *("finetune.epochs=100", "finetune.warmup_epochs=5"),
        *("finetune.epochs=2", "finetune.warmup_epochs=1", "device=cpu"),
        override_of("out", tmp_path / "out"),
    ]
    assert main(argv) == 0
    result = json.loads((tmp_path / "out" / "finetune-cub200.json").read_text())
    assert result["input"]["size"] == 448
    assert result["input"]["resize"] == 600
    assert result["config"]["crop"]["kind"] == "random"
    assert 0 <= result["metrics"]["top1"] <= 100


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lrs": [0.1, 0.1]}, "lrs must"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam': did you mean 'adamw'"),
        ({"batchnorm": "eval"}, "unknown batchnorm 'eval'"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov is of optimizer=sgd alone"),
        ({"head_lr": 0.0}, "head_lr must be positive"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0"),
        ({"epochs": 0}, "epochs and batch_size"),
        ({"warmup_epochs": 20.0}, "warmup_epochs must be 0 or more and below epochs"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed must not be negative"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
        ({"lr": [1.0]}, "did you mean 'lrs'"),
    ],
)
def test_bad_options(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(FinetuneConfig, given, "finetune")


def test_what_cannot_be_trained_stops_before_any_work() -> None:
    data = live_data(ColourNet())
    with pytest.raises(UserError, match="BatchNorm needs 2 images in each of 1 processes, a batch has 1: take"):
        Finetune(options(batch_size=1, batchnorm="train")).check(data.source, data.datasets)
    Finetune(options(batch_size=1)).check(data.source, data.datasets)
    without = dataclasses.replace(data.source, backbone=create_backbone("dla46_c"))
    with pytest.raises(UserError, match="has no stochastic depth"):
        Finetune(options(drop_path=0.1)).check(without, data.datasets)
    data.datasets["test"].targets[3] = -1  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="arrays test: image 3 has label -1"):
        Finetune(options()).check(data.source, data.datasets)
