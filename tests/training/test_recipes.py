"""Every recipe assembles without its data, with the numbers of the papers computed by hand; the mini ones train."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from ssl_toolkit import training
from ssl_toolkit.backbones import Backbone, create_backbone, map_size
from ssl_toolkit.config import choices, compose_config, override_of
from ssl_toolkit.methods import METHODS
from ssl_toolkit.methods.base import Embedded
from ssl_toolkit.training import parts as parts_module
from ssl_toolkit.training.describe import advice, optimization
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.views import Engine
from tests.helpers import TinyBackbone, random_batch

IMAGES = 1_281_167  # of ImageNet
PAPER = [name for name in choices("experiment") if name.startswith("paper/")]
MINI = [name for name in choices("experiment") if name.startswith("digits_")]
DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


class Numbers(NamedTuple):
    """What the papers and the authors' commands say, multiplied out by hand."""

    images: int
    epochs: int
    peak: float
    end: float
    steps_per_epoch: int
    warmup: int
    weight_decay: float
    alpha: float | None
    processes: int


def resnet(epochs: int, alpha: float | None = None) -> Numbers:
    return Numbers(2048, epochs, 1.6, 0.0016, 625, 6250, 1e-6, alpha, 32)


def resnet_one_node(alpha: float | None = None) -> Numbers:
    return Numbers(512, 100, 0.6, 0.0006, 2502, 25020, 1e-6, alpha, 8)


def convnext_small(epochs: int, alpha: float | None = None) -> Numbers:
    return Numbers(384, epochs, 0.001125, 1.125e-6, 3336, 33360, 0.05, alpha, 8)


def convnext_base(epochs: int, alpha: float | None = None) -> Numbers:
    return Numbers(576, epochs, 0.001125, 1.125e-6, 2224, 22240, 0.05, alpha, 16)


EXPECTED = {
    "paper/vicreg_resnet50": resnet(1000),
    "paper/vicreg_resnet50_100ep": resnet_one_node(),
    "paper/vicreg_resnet50_300ep": resnet(300),
    "paper/vicregl_resnet50_alpha0p9": resnet(300, 0.9),
    "paper/vicregl_resnet50_alpha0p75": resnet(300, 0.75),
    "paper/vicregl_resnet50_100ep": resnet_one_node(0.75),
    "paper/simclr_resnet50_300ep": resnet(300),
    "paper/simclr_l_resnet50_300ep": resnet(300, 0.75),
    "paper/vicreg_convnext_small": convnext_small(400),
    "paper/vicreg_convnext_base": convnext_base(400),
    "paper/vicregl_convnext_small_alpha0p9": convnext_small(400, 0.9),
    "paper/vicregl_convnext_small_alpha0p75": convnext_small(400, 0.75),
    "paper/vicregl_convnext_small_100ep": convnext_small(100, 0.75),
    "paper/vicregl_convnext_base_alpha0p9": convnext_base(400, 0.9),
    "paper/vicregl_convnext_base_alpha0p75": convnext_base(400, 0.75),
    "paper/vicregl_convnext_xlarge_alpha0p75": convnext_base(150, 0.75),
}


class StubDataset:
    """ImageNet's size and statistics without its images."""

    in_channels = 3
    config = SimpleNamespace(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    def __init__(self, config: DictConfig) -> None:
        self.classes = None if config.get("labels") == "none" else tuple(map(str, range(1000)))

    def __len__(self) -> int:
        return IMAGES


@functools.cache
def weightless(name: str, drop_path: float) -> Backbone:
    with torch.device("meta"):
        return create_backbone({"name": name, "drop_path": drop_path})


sizes = functools.cache(map_size)


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "create_backbone", lambda config: weightless(config.name, config.drop_path))
    monkeypatch.setattr(parts_module, "map_size", sizes)
    monkeypatch.setattr(parts_module, "build_dataset", lambda config, split: StubDataset(config))
    monkeypatch.setattr(parts_module, "choose_engine", lambda *_: Engine("torch", "for the test"))


def assembled(name: str, *overrides: str) -> training.Parts:
    """The parts of a recipe, its weights on the meta device."""
    config = compose_config("pretrain", [f"experiment={name}", "trainer.device=cpu", *overrides])
    with torch.device("meta"):
        return training.assemble(parts_module.resolved(config))


def test_every_paper_recipe_has_its_numbers_here() -> None:
    assert sorted(EXPECTED) == PAPER


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_assemble_with_the_published_numbers(name: str) -> None:
    parts, expected = assembled(name), EXPECTED[name]
    options = OPTIMIZERS.options(parts.config.optimizer)
    convnext = "convnext" in name
    assert (parts.trainer.batch_size, parts.trainer.epochs) == (expected.images, expected.epochs)
    assert options.peak(expected.images) == pytest.approx(expected.peak)
    assert options.peak(expected.images) * options.final_factor == pytest.approx(expected.end)
    assert (parts.steps_per_epoch, parts.total_steps) == (
        expected.steps_per_epoch,
        expected.steps_per_epoch * expected.epochs,
    )
    assert options.warmup_epochs * parts.steps_per_epoch == expected.warmup
    assert options.weight_decay == expected.weight_decay
    assert parts.config.method.get("alpha") == expected.alpha
    assert parts.trainer.batch_size % expected.processes == 0
    assert parts.config.optimizer.name == ("adamw" if convnext else "lars")
    assert parts.map_sizes == ([(7, 7)] * 2 + [(3, 3)] * 6 if convnext else [(7, 7)] * 2)
    assert advice(parts) == []
    if "simclr" not in name:
        assert parts.config.method.expander.widths == [8192, 8192, 8192]
        assert (parts.config.method.invariance, parts.config.method.variance) == (25, 25)
    if expected.alpha is not None:
        local = parts.config.method.local
        assert (local.gamma, local.feature_gamma, local.flip_aware) == ([20, 4], [0, 0], False)
        assert (local.matching, local.sum_directions, local.gamma_by) == ("both", False, "argument")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", ["paper/vicregl_resnet50_alpha0p9", "paper/simclr_l_resnet50_300ep"])
def test_the_equations_of_the_paper_are_one_option_away(name: str) -> None:
    parts = assembled(name, "method.preset=paper")
    local = parts.config.method.local
    assert (local.feature_gamma, local.flip_aware, local.sum_directions) == ([20, 4], True, True)


@pytest.mark.parametrize(("overrides", "factor"), [([], 0.5), (["method.preset=paper", "method.covariance=1"], 1.0)])
def test_vicreg_is_what_its_code_computes(overrides: list[str], factor: float) -> None:
    """The code averages the variance of the two views and adds their covariance; the paper adds both."""
    config = compose_config("pretrain", ["experiment=paper/vicreg_resnet50", *overrides])
    config.method.expander.widths = [5, 5]
    method = METHODS.build(config.method, backbone=TinyBackbone())
    torch.manual_seed(0)
    x, y = torch.randn(2, 8, 5, dtype=torch.float64)

    def hinge(z: Tensor) -> float:
        return sum(max(0.0, 1 - (z[:, j].var().item() + 1e-4) ** 0.5) for j in range(5)) / 5

    def correlation(z: Tensor) -> float:
        cov = torch.cov(z.T)
        return sum(cov[i, j].item() ** 2 for i in range(5) for j in range(5) if i != j) / 5

    expected = 25 * ((x - y) ** 2).mean().item()
    expected += 25 * factor * (hinge(x) + hinge(y)) + correlation(x) + correlation(y)
    loss = method.compare(Embedded(x, (x, y)), random_batch(8)).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def mini(name: str, runs: Path, *overrides: str) -> Any:
    small = [f"experiment={name}", override_of("runs_dir", runs), "data.train_size=32", "data.val_size=16"]
    fast = ["data.test_size=16", "trainer.batch_size=8", "trainer.workers=0", "trainer.device=cpu"]
    return compose_config("pretrain", [*small, *fast, *overrides])


@pytest.mark.parametrize("name", MINI)
def test_mini_recipes_train(name: str, tmp_path: Path) -> None:
    run = training.pretrain(mini(name, tmp_path, "trainer.steps=2", "name=run"), Console(quiet=True))
    assert (run / "backbone.safetensors").is_file()


@pytest.mark.parametrize("name", MINI)
def test_mini_recipes_mirror_a_paper_one(name: str) -> None:
    config = compose_config("pretrain", [f"experiment={name}"])
    text = (Path(__file__).parents[2] / "configs" / "experiment" / f"{name}.yaml").read_text()
    mirrored = re.search(r"paper/([a-z0-9_*]+)", text)
    assert mirrored
    paths = list(Path(__file__).parents[2].glob(f"configs/experiment/paper/{mirrored.group(1)}.yaml"))
    assert paths
    paper = compose_config("pretrain", [f"experiment=paper/{paths[0].stem}"])
    assert (config.method.name, config.optimizer.name) == (paper.method.name, paper.optimizer.name)
    assert len(config.views.groups) == len(paper.views.groups)


def test_small_views_with_lars_or_a_resnet_are_advised_against(tmp_path: Path) -> None:
    both = advice(training.assemble(mini("digits_vicregl", tmp_path, "views=digit_scenes_multicrop")))
    assert [sentence.split(":")[0] for sentence in both] == [
        "small views with a BatchNorm backbone",
        "small views with LARS",
    ]
    assert advice(training.assemble(mini("digits_vicregl", tmp_path))) == []
    assert advice(training.assemble(mini("digits_vicregl_convnext", tmp_path))) == []


def test_a_warm_up_that_never_ends_is_said(tmp_path: Path) -> None:
    parts = training.assemble(mini("digits_vicreg", tmp_path, "optimizer.warmup_epochs=10", "trainer.epochs=5"))
    (sentence,) = advice(parts)
    assert "warm-up of 40 steps is as long as the run of 20 or longer" in sentence
    assert "reaches 49% of its peak" in sentence  # the 20th of 41 parts


@pytest.mark.usefixtures("no_data")
def test_the_rate_and_where_it_comes_from_are_printed() -> None:
    assert optimization(assembled("paper/vicregl_resnet50_alpha0p9")) == (
        "187,500 steps of 2,048 images (625 an epoch), lars, learning rate 1.6 (0.2 x 2,048 / 256) after 6,250 warm-up "
        "steps, cosine to 0.0016, weight decay 1e-06"
    )
    options = ["optimizer.scale_by_batch=false", "optimizer.weight_decay_end=0.4", "optimizer.layer_decay=0.75"]
    line = optimization(assembled("paper/vicreg_convnext_small", *options))
    assert "learning rate 0.00075 after" in line
    assert line.endswith("weight decay 0.05 to 0.4, each layer 0.75 times as fast as the next")


def test_the_page_names_every_recipe() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name in [*PAPER, *MINI]:
        assert f"`{name.removeprefix('paper/')}`" in page or f"`{name}`" in page, name


def test_no_key_of_a_recipe_is_lost_to_the_order_of_the_defaults() -> None:
    folder = Path(__file__).parents[2] / "configs" / "experiment"
    for name in ["paper/simclr_l_resnet50_300ep", "paper/vicregl_convnext_base_alpha0p9", "digits_vicregl_convnext"]:
        own = OmegaConf.load(folder / f"{name}.yaml")
        composed = compose_config("pretrain", [f"experiment={name}"])
        assert isinstance(own, type(composed))
        own.pop("defaults")
        for section, values in own.items():
            assert OmegaConf.merge(composed[section], values) == composed[section], (name, section)


def test_every_command_on_the_page_composes() -> None:
    page = DOCS.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in page.splitlines() if re.match(r"(ssl-toolkit|torchrun) .*pretrain", line)]
    assert len(commands) >= 4
    for command in commands:
        config = compose_config("pretrain", shlex.split(command.split(" pretrain ")[1]))
        OPTIMIZERS.options(config.optimizer)
        METHODS.options(config.method)
