"""Which parameters decay, and how fast each layer learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ssl_toolkit.backbones import BackboneConfig, create_backbone
from ssl_toolkit.backbones.groups import layer_numbers, parameter_groups
from ssl_toolkit.methods import METHODS
from tests.helpers import TinyBackbone


class Classifier(nn.Module):
    """A backbone with a head, as fine-tuning has it."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.backbone = create_backbone(BackboneConfig(name, **options))
        self.head = nn.Linear(self.backbone.num_features, 3)


def found(module: nn.Module, **options: Any) -> dict[str, dict[str, Any]]:
    """Each parameter's group, by the name of the parameter."""
    groups = parameter_groups(module, **{"weight_decay": 0.1, "lr": 1.0, **options})
    owner = {id(p): group for group in groups for p in group["params"]}
    return {name: owner[id(p)] for name, p in module.named_parameters() if p.requires_grad}


def test_weights_decay_and_biases_and_norms_do_not() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.LayerNorm(2))
    for name, group in found(module).items():
        is_weight = name in ("0.weight", "2.weight")
        assert (group["decays"], group["weight_decay"]) == ((True, 0.1) if is_weight else (False, 0.0)), name


def test_every_trained_parameter_is_in_one_group() -> None:
    method = METHODS.build({"name": "vicregl"}, backbone=TinyBackbone())
    next(method.parameters()).requires_grad_(False)
    for decay in (1.0, 0.5):
        groups = parameter_groups(method, 0.1, 1.0, decay)
        grouped = [id(p) for group in groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert len(parameter_groups(method, 0.1, 1.0)) == 2


def test_position_embeddings_do_not_decay() -> None:
    with torch.device("meta"):
        module = Classifier("vit_tiny_patch16_224", image_size=224)
    groups = found(module)
    assert not groups["backbone.model.pos_embed"]["decays"]
    assert not groups["backbone.model.cls_token"]["decays"]
    assert groups["backbone.model.blocks.0.attn.qkv.weight"]["decays"]


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        # 8 residual blocks of two convolutions, before them the stem, after them the head
        (
            "resnet18",
            {},
            {"model.conv1": 0, "model.bn1": 0, "model.layer1.0": 1, "model.layer1.1": 2, "model.layer4.1": 8},
        ),
        # blocks 2, 2, 6, 2; each downsampling goes with the first block after it; the norm after pooling with the head
        (
            "convnext_atto",
            {},
            {
                "model.stem": 0,
                "model.stages.0.blocks.0": 1,
                "model.stages.1.downsample": 3,
                "model.stages.1.blocks.0": 3,
            }
            | {"model.stages.2.blocks.5": 10, "model.stages.3.blocks.1": 12, "model.head.norm": 13},
        ),
        # 12 blocks; the final norm goes with the last
        (
            "vit_tiny_patch16_224",
            {"image_size": 224},
            {
                "model.pos_embed": 0,
                "model.patch_embed": 0,
                "model.blocks.0": 1,
                "model.blocks.11": 12,
                "model.norm": 12,
            },
        ),
        # the norm before pooling goes with the last block
        ("vicregl_convnext_mini", {}, {"model.stem": 0, "model.stages.3.blocks.0": 5, "model.norm_pre": 5}),
        # no model of timm's: its children, and the items of its list
        ("tiny_resnet", {}, {"stem": 0, "blocks.0": 1, "blocks.3": 4}),
    ],
)
def test_each_layer_learns_at_its_share(name: str, options: dict[str, Any], layers: dict[str, int]) -> None:
    with torch.device("meta"):
        module = Classifier(name, **options)
    groups = found(module, layer_decay=0.5, lr=2.0)
    numbers = layer_numbers(module)
    head = numbers["head.weight"]
    assert groups["head.weight"]["lr"] == groups["head.bias"]["lr"] == 2.0
    for prefix, number in layers.items():
        within = [n for n in groups if n == f"backbone.{prefix}" or n.startswith(f"backbone.{prefix}.")]
        assert within, prefix
        for parameter in within:
            assert numbers[parameter] == number, parameter
            assert groups[parameter]["lr"] == 2.0 * 0.5 ** (head - number), parameter
    assert head == max(max(layers.values()), max(n for p, n in numbers.items() if ".blocks." in p or ".layer" in p) + 1)
    assert sorted(set(numbers.values())) == list(range(head + 1))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_shares_are_timms(name: str) -> None:
    """timm numbers the layers of a model with its classifier; ours has the head outside."""
    import timm
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        reference = timm.create_model(name, num_classes=3)
        module = Classifier(name)
    scales = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(reference, layer_decay=0.7)
        for p in group["params"]
    }
    ours = found(module, layer_decay=0.7)
    compared = 0
    for parameter, value in reference.named_parameters():
        if f"backbone.model.{parameter}" in ours:
            assert ours[f"backbone.model.{parameter}"]["lr"] == pytest.approx(scales[id(value)]), parameter
            compared += 1
    assert compared > 50


def test_the_fastest_group_comes_first() -> None:
    rates = [group["lr"] for group in parameter_groups(Classifier("tiny_resnet"), 0.1, 1.0, 0.5)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0


def test_without_a_backbone_there_is_one_layer() -> None:
    groups = parameter_groups(nn.Linear(3, 2), 0.1, 1.0, 0.5)
    assert [group["lr"] for group in groups] == [1.0, 1.0]
