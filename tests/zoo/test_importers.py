"""Checkpoints of installed libraries and of VICReg's and VICRegL's authors: the import computes what they compute."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lightly.models
import numpy as np
import pytest
import timm
import torch
import torchvision
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.utils.benchmarking import OnlineLinearClassifier
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from ssl_toolkit.backbones import create_backbone, save_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import METHODS
from ssl_toolkit.zoo.importers import load_checkpoint, mlp
from ssl_toolkit.zoo.importers.layouts import layout_of
from tests.zoo.importing import (
    alive,
    assert_same,
    images,
    imported,
    lightning,
    prefixed,
    resnet_features,
    save,
    vit_features,
    without_head,
)
from tests.zoo.test_official import assert_golden, official

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def official_head(features: int, widths: tuple[int, ...], norm: type[nn.Module]) -> nn.Sequential:
    """A head as the README of tests/golden describes the authors'."""
    layers: list[nn.Module] = []
    for inside, outside in zip((features, *widths[:-2]), widths[:-1]):
        layers += [nn.Linear(inside, outside), norm(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))


@pytest.mark.parametrize("arch", ["resnet50", "convnext_small"])
def test_full_vicregl_checkpoints_with_heads(tmp_path: Path, arch: str) -> None:
    features, norm = (2048, nn.BatchNorm1d) if arch == "resnet50" else (768, nn.LayerNorm)
    expander, projector = (alive(official_head(features, w, norm)) for w in ((48, 40, 32), (24, 20, 16)))
    model = {
        **prefixed(official(arch), "module.backbone."),
        **prefixed(projector.state_dict(), "module.maps_projector."),
        **prefixed(expander.state_dict(), "module.projector."),
        **prefixed(nn.Linear(features, 5).state_dict(), "module.classifier."),
    }
    optimizer = {"state": {0: {"mu": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    found = imported({"epoch": 300, "model": model, "optimizer": optimizer}, tmp_path)
    assert found.format == "vicregl"
    assert found.facts["epoch"] == 300
    assert found.facts["weights"] == "model.backbone"
    assert found.preprocessing == IMAGENET
    assert_golden(found.backbone, arch)
    vectors = torch.randn(6, features)
    for name, head in (("expander", expander), ("local_projector", projector)):
        with torch.no_grad():
            torch.testing.assert_close(mlp(found.heads[name])(vectors), head(vectors))
    assert found.heads["classifier"]["weight"].shape == (5, features)


def test_full_vicreg_checkpoint(tmp_path: Path) -> None:
    model: Any = alive(torchvision.models.resnet18())
    expander = alive(official_head(512, (48, 40, 32), nn.BatchNorm1d))
    weights = prefixed(without_head(model), "module.backbone.") | prefixed(expander.state_dict(), "module.projector.")
    found = imported({"epoch": 1000, "model": weights, "optimizer": {}}, tmp_path)
    assert (found.format, found.config.name, list(found.heads)) == ("vicreg", "resnet18", ["expander"])
    assert_same(found.backbone, *resnet_features(model))


def widened(blocks: tuple[int, ...]) -> ResNet:
    """A ResNet twice as wide, from torchvision's own blocks."""
    model = ResNet(Bottleneck, [1, 1, 1, 1])
    model.inplanes = 128
    model.conv1, model.bn1 = nn.Conv2d(3, 128, 7, 2, 3, bias=False), nn.BatchNorm2d(128)
    for number, (count, width) in enumerate(zip(blocks, (128, 256, 512, 1024)), 1):
        setattr(model, f"layer{number}", model._make_layer(Bottleneck, width, count, stride=1 if number == 1 else 2))
    return model


def test_vicregs_wide_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = alive(widened((3, 4, 6, 3)))
    found = imported(without_head(model), tmp_path, format="vicreg")
    assert (found.config.name, found.backbone.num_features) == ("resnet50x2", 4096)
    assert_same(found.backbone, *resnet_features(model))


def test_vicregs_widest_resnet_has_our_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs, ours = without_head(widened((3, 24, 36, 3))), create_backbone("resnet200x2")
    assert by_shapes(theirs) == "resnet200x2"
    assert {f"model.{name}": value.shape for name, value in theirs.items()} == shapes(ours)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def by_shapes(weights: dict[str, Tensor]) -> str:
    """The architecture that weights without numbers are taken for."""
    layout = layout_of(weights)
    assert layout is not None
    return layout.config({layout.timm_name(name): value for name, value in weights.items()}).name


@pytest.mark.parametrize("classifier", [True, False])
def test_torchvision_resnets(tmp_path: Path, classifier: bool) -> None:
    torch.manual_seed(0)
    model = alive(torchvision.models.resnet18())
    found = imported(model.state_dict() if classifier else without_head(model), tmp_path)
    assert (found.format, found.config.name) == ("torchvision", "resnet18")
    assert set(found.heads) == ({"fc"} if classifier else set())
    assert_same(found.backbone, *resnet_features(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet101", "resnext50_32x4d", "wide_resnet50_2", "wide_resnet101_2", "convnext_base"]
)
def test_larger_torchvision_networks(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model: Any = alive(torchvision.models.get_model(name))
    found = imported(model.state_dict(), tmp_path)
    assert found.config.name == name
    if "resne" in name:
        assert_same(found.backbone, *resnet_features(model))
    else:
        model.classifier[2] = nn.Identity()
        with torch.no_grad():
            assert_same(found.backbone, model(images()), model.features(images()))


def test_torchvision_convnext(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = alive(torchvision.models.convnext_tiny())
    found = imported(model.state_dict(), tmp_path)
    assert (found.format, found.config.name) == ("torchvision", "convnext_tiny")
    model.classifier[2] = nn.Identity()
    with torch.no_grad():
        assert_same(found.backbone, model(images()), model.features(images()))


@pytest.mark.parametrize(
    "name",
    [
        *("resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
        *(
            "resnext50_32x4d",
            "resnext101_32x8d",
            "resnext101_64x4d",
            "convnext_small",
            "convnext_base",
            "convnext_large",
        ),
    ],
)
def test_larger_torchvision_networks_are_recognised(name: str) -> None:
    """... and have, under timm's names, the shapes of timm's network."""
    with torch.device("meta"):
        theirs, timms = torchvision.models.get_model(name).state_dict(), timm.create_model(name, num_classes=0)
    assert by_shapes(theirs) == name
    layout = layout_of(theirs)
    assert layout is not None
    found = {layout.timm_name(k): v.shape for k, v in theirs.items() if not k.startswith(layout.heads)}
    assert {k: v[:1] if k.endswith("gamma") else v for k, v in found.items()} == shapes(timms)


@pytest.mark.parametrize(
    ("name", "size", "recognised"),
    [
        ("resnet18", 64, True),
        ("convnext_atto", 64, True),
        ("vit_tiny_patch16_224", 64, True),
        ("regnety_002", 64, False),
        ("mobilenetv3_small_050", 64, False),
        ("deit_tiny_distilled_patch16_224", 224, False),
    ],
)
def test_timm_models(tmp_path: Path, name: str, size: int, recognised: bool) -> None:
    torch.manual_seed(0)
    options = {"img_size": size} if name.startswith("vit") else {}
    model: Any = alive(timm.create_model(name, **options))
    path = save(model.state_dict(), tmp_path)
    if not recognised:
        with pytest.raises(UserError, match=r"name its architecture|do not tell the architecture: give it \(arch="):
            load_checkpoint(path)
    found = load_checkpoint(path, arch=None if recognised else name)
    assert found.config.name == name
    assert found.config.image_size == (64 if options else None)
    with torch.no_grad():
        maps = model.forward_features(images(size))
    if maps.ndim == 3:
        assert_same(found.backbone, *vit_features(model, size), size=size)
    elif name == "convnext_atto":
        with torch.no_grad():
            assert_same(found.backbone, model.forward_head(maps, pre_logits=True), maps)
    else:
        assert_same(found.backbone, maps.mean((2, 3)), maps)


def test_timm_channels_and_the_hub_folder(tmp_path: Path) -> None:
    """A folder as timm pushes it to the hub says what it is, and how images are normalised."""
    model: Any = alive(timm.create_model("regnety_002", in_chans=3, num_classes=7))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    about = {"architecture": "regnety_002", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    found = load_checkpoint(tmp_path / "model.safetensors")
    assert found.preprocessing == {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    assert found.heads["classifier"]["head.fc.weight"].shape[0] == 7
    with torch.no_grad():
        maps = model.forward_features(images())
    assert_same(found.backbone, maps.mean((2, 3)), maps)
    grey: Any = alive(timm.create_model("resnet18", in_chans=1))
    one = imported(grey.state_dict(), tmp_path)
    assert (one.config.in_channels, one.preprocessing) == (1, {})


def lightly_module(backbone: nn.Module, features: int) -> nn.Module:
    """The parts of a benchmark of lightly's: what its Lightning module registers."""
    return nn.ModuleDict(
        {
            "backbone": backbone,
            "projection_head": VICRegProjectionHead(features, 32, 32),
            "online_classifier": OnlineLinearClassifier(feature_dim=features, num_classes=4),
        }
    )


@pytest.mark.parametrize("children", [False, True])
def test_lightly_with_torchvision(tmp_path: Path, children: bool) -> None:
    """Its benchmarks drop the classifier by an identity, its examples by a Sequential of the children."""
    torch.manual_seed(0)
    model: Any = alive(torchvision.models.resnet18())
    expected = resnet_features(model)
    model.fc = nn.Identity()
    network = nn.Sequential(*list(model.children())[:-1]) if children else model
    module = alive(lightly_module(network, 512), seed=1)
    expected = resnet_features(model)
    found = imported(lightning(module.state_dict()), tmp_path)
    assert (found.format, found.config.name, found.config.stem) == ("lightly", "resnet18", "imagenet")
    assert set(found.heads) == {"projection_head", "online_classifier"}
    assert_same(found.backbone, *expected)


def test_lightlys_own_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = alive(lightly.models.ResNetGenerator("resnet-18"))
    found = imported(lightning(lightly_module(model, 512).state_dict()), tmp_path)
    assert (found.format, found.config.name, found.config.stem) == ("lightly", "resnet18", "small")
    with torch.no_grad():
        maps = model.layer4(model.layer3(model.layer2(model.layer1(model.bn1(model.conv1(images(32))).relu()))))
    assert_same(found.backbone, maps.mean((2, 3)), maps, size=32)
    # As a Sequential of its children it has no ReLU after the first norm: other features from the same weights.
    children = nn.Sequential(*list(model.children())[:-1], nn.AdaptiveAvgPool2d(1))
    with pytest.raises(UserError, match=r"has no ReLU in its stem"):
        imported(lightning(lightly_module(children, 512).state_dict()), tmp_path)


def test_lightlys_masked_vit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit: Any = timm.create_model("vit_tiny_patch16_224", img_size=64)
    backbone = alive(MaskedVisionTransformerTIMM(vit))
    module = nn.ModuleDict({"backbone": backbone, "decoder": nn.Linear(192, 32)})
    found = imported(lightning(module.state_dict()), tmp_path)
    assert (found.format, found.config.name) == ("lightly", "vit_tiny_patch16_224")
    assert found.facts["ignored"] == {"backbone.mask_token": 1}
    with torch.no_grad():
        tokens = backbone.encode(images())[:, 1:]
    assert_same(found.backbone, tokens.mean(1), tokens.mT.unflatten(2, (4, 4)))


def test_our_own_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = alive(create_backbone("tiny_resnet"))
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    save_backbone(tmp_path / "backbone.safetensors", backbone, preprocessing)
    config = {"name": "vicregl", "expander": {"widths": [32, 32, 32]}, "projector": {"widths": [16, 16, 16]}}
    method: Any = METHODS.build(config, backbone=backbone)
    about = {"config": {"backbone": backbone.config.as_dict()}, "preprocessing": preprocessing}
    tree = lightning(prefixed(method.state_dict(), "method."), ssl_toolkit=about)
    with torch.no_grad():
        expected = backbone(images())
    exported, trained = load_checkpoint(tmp_path / "backbone.safetensors"), imported(tree, tmp_path)
    for found in (exported, trained):
        assert (found.format, found.config) == ("ssl-toolkit", backbone.config)
        assert found.preprocessing == preprocessing
        assert_same(found.backbone, expected.pooled, expected.maps)
    assert set(trained.heads) == {"expander", "local_projector"}
    vectors = torch.randn(5, 128)
    with torch.no_grad():
        torch.testing.assert_close(mlp(trained.heads["expander"])(vectors), method.head.eval()(vectors))
    for path in (tmp_path / "backbone.safetensors", tmp_path / "weights.pth"):
        with pytest.raises(UserError, match="holds tiny_resnet, not resnet18"):
            load_checkpoint(path, arch="resnet18")


def test_what_trainers_keep_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    """Namespaces and NumPy scalars are in many old checkpoints; they are neither built nor in the way."""
    model = alive(torchvision.models.resnet18())
    beside = {
        "args": argparse.Namespace(lr=0.1, data=Path("imagenet"), nested=argparse.Namespace(x=1)),
        "best_acc1": np.float64(71.5),
        "history": np.arange(4.0),
        "dtype": np.dtype("float32"),
    }
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth.tar"
        tree = {"epoch": 90, "arch": "resnet18", "state_dict": prefixed(model.state_dict(), "module."), **beside}
        torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
        found = load_checkpoint(path)
        assert {key: found.facts[key] for key in ("epoch", "arch")} == {"epoch": 90, "arch": "resnet18"}
        assert_same(found.backbone, *resnet_features(model))
