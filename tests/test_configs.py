"""Every YAML composes, has every key of its schema with its default, and builds what it describes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ssl_toolkit.backbones import BackboneConfig, create_backbone
from ssl_toolkit.config import choices, compose_config, expand, groups, leaf_keys
from ssl_toolkit.data import DATASETS
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import METHODS
from ssl_toolkit.registry import Registry, typed
from ssl_toolkit.training import TrainerConfig
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.views import ViewsConfig
from tests.helpers import TinyBackbone


def section(group: str, name: str) -> dict[str, Any]:
    overrides = [f"{group}={name}"]
    if group == "backbone" and name == "timm":
        overrides.append("backbone.name=resnet18")
    if group == "data":
        overrides.append("views=small")  # a recipe of the data's own name is checked below
    config = compose_config("pretrain", overrides)[group]
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def every(*names: str) -> list[tuple[str, str]]:
    return [(group, name) for group in names for name in choices(group)]


def test_the_groups_are_those_documented() -> None:
    assert groups() == [
        "backbone",
        "data",
        "experiment",
        "launcher",
        "method",
        "optimizer",
        "protocol",
        "reproduce",
        "scale",
        "views",
    ]
    assert choices("method") == METHODS.names()
    assert choices("optimizer") == OPTIMIZERS.names()
    assert choices("data") == DATASETS.names()
    assert set(choices("data")) <= set(choices("views"))


REGISTRIES: dict[str, Registry[Any]] = {"method": METHODS, "optimizer": OPTIMIZERS, "data": DATASETS}


def keys(values: Any, prefix: str = "") -> set[str]:
    """Dotted names of all keys, sections included."""
    if not isinstance(values, dict):
        return set()
    return {name for k, v in values.items() for name in (f"{prefix}{k}", *keys(v, f"{prefix}{k}."))}


@pytest.mark.parametrize(("group", "name"), every("method", "optimizer", "data"))
def test_yamls_list_every_option(group: str, name: str) -> None:
    values = section(group, name)
    assert values.pop("name") == name
    schema = REGISTRIES[group].entry(name).schema
    assert keys(values) == keys(OmegaConf.to_container(OmegaConf.structured(schema)))
    REGISTRIES[group].options({"name": name, **values})


@pytest.mark.parametrize("name", choices("method"))
def test_method_yamls_hold_the_defaults(name: str) -> None:
    values = section("method", name)
    schema = METHODS.entry(values.pop("name")).schema
    assert typed(schema, values, "method") == schema()
    METHODS.build({"name": name, **values}, backbone=TinyBackbone())


def test_trainer_section_holds_the_defaults() -> None:
    config = compose_config("pretrain")
    assert typed(TrainerConfig, config.trainer, "trainer") == TrainerConfig()


@pytest.mark.parametrize("name", choices("views"))
def test_view_recipes_build(name: str) -> None:
    values = section("views", name)
    typed(ViewsConfig, values, "views")
    fields = {f.name for f in dataclasses.fields(ViewsConfig().groups[0])}
    for group in values["groups"]:
        assert set(group) == fields


@pytest.mark.parametrize("name", choices("backbone"))
def test_backbones_build(name: str) -> None:
    values = section("backbone", name)
    assert set(values) == {f.name for f in dataclasses.fields(BackboneConfig)}
    with torch.device("meta"):
        assert create_backbone(values).num_features > 0


@pytest.mark.parametrize("name", choices("experiment"))
def test_experiments_compose_and_build(name: str) -> None:
    config = compose_config("pretrain", [f"experiment={name}"])
    typed(TrainerConfig, config.trainer, "trainer")
    typed(ViewsConfig, config.views, "views")
    OPTIMIZERS.options(config.optimizer)
    with torch.device("meta"):
        METHODS.build(config.method, backbone=create_backbone(config.backbone))


def test_the_recipe_follows_the_data_unless_chosen() -> None:
    assert compose_config("pretrain", ["data=folder"]).views.groups[0].size == 224
    assert compose_config("pretrain", ["data=digit_scenes"]).views.groups[0].size == 48
    chosen = compose_config("pretrain", ["data=folder", "views=vicregl_multicrop"])
    assert [g.size for g in chosen.views.groups] == [224, 96]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=vicregll"], "unknown method 'vicregll': did you mean 'vicregl' or 'vicreg'"),
        (["backbone=nope"], "unknown backbone 'nope'"),
        (["method.alfa=0.5"], r"unknown key 'method.alfa': did you mean 'method.alpha'"),
        (["alpha=0.5"], r"unknown key 'alpha': did you mean 'method.alpha'"),
        (["epochs=3"], "did you mean 'trainer.epochs'"),
        (["trainer.batchsize=3"], "did you mean 'trainer.batch_size'"),
        (["metod=vicreg"], "did you mean 'method'"),
        (["trainer.epochs"], "write key=value"),
        (["method.alpha=[1"], "cannot read 'method.alpha="),
        (["experiment=digits_vicreg", "method.alpha=1"], "unknown key 'method.alpha'"),
    ],
)
def test_wrong_overrides_name_the_nearest(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose_config("pretrain", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["optimizer=adamw"], ["optimizer.trust_coefficient"]),
        (["method=simclr"], ["method.covariance", "method.expander", "method.variance"]),
        (["optimizer=sgd", "method=vicreg"], ["optimizer.trust_coefficient"]),
    ],
)
def test_what_an_experiment_sets_for_another_choice_is_named_with_what_leaves_it_out(
    overrides: list[str], keys: list[str]
) -> None:
    given = ["experiment=digits_vicreg", *overrides]
    with pytest.raises(UserError, match=f"^experiment=digits_vicreg sets {', '.join(keys)}, which ") as caught:
        compose_config("pretrain", given)
    advised = re.findall(r"'(~[a-z_.]+)'", str(caught.value))
    assert advised == [f"~{key}" for key in keys]
    left = compose_config("pretrain", [*given, *advised])
    METHODS.options(left.method)
    OPTIMIZERS.options(left.optimizer)


def test_another_choice_that_has_every_key_keeps_what_the_experiment_sets() -> None:
    assert compose_config("pretrain", ["experiment=digits_vicreg", "method=vicregl"]).method.variance == 50
    assert compose_config("pretrain", ["experiment=digits_vicreg", "backbone=resnet18"]).backbone.name == "resnet18"


def test_sweeps_expand_to_every_combination() -> None:
    jobs = expand(["method=vicreg,vicregl", "seed=range(2)", "trainer.epochs=3", "method.local.gamma=[5,2],[9,4]"])
    assert len(jobs) == 8
    assert jobs[0] == ["method=vicreg", "seed=0", "trainer.epochs=3", "method.local.gamma=[5,2]"]
    assert jobs[-1] == ["method=vicregl", "seed=1", "trainer.epochs=3", "method.local.gamma=[9,4]"]


def test_leaf_keys_are_dotted() -> None:
    assert leaf_keys(OmegaConf.create({"a": {"b": 1, "c": {"d": None}}, "e": [1]})) == ["a.b", "a.c.d", "e"]
