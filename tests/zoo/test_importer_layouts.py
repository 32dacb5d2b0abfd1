"""Checkpoints of libraries that are not installed here: their names on networks of torchvision and timm.

The names were read in the public sources: MoCo's and MoCo v3's ``builder.py`` and ``vits.py``, DINO's and iBOT's
``main_*.py``, MAE's ``models_mae.py``, PixPro's and detectron2's converters, solo-learn's ``base.py``, mmpretrain's
``timm2mmpretrain``-like converters, stable-pretraining's ``module.py`` and ``backbone/utils.py``.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo.importers import FORMATS, load_checkpoint
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

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> Any:
    torch.manual_seed(0)
    return alive(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def vit() -> Any:
    torch.manual_seed(0)
    return alive(timm.create_model("vit_tiny_patch16_224", img_size=64))


def other(weights: Weights, prefix: str) -> Weights:
    """Weights of the same names and other numbers, as a momentum network has them."""
    return {f"{prefix}{name}": value + 1 for name, value in weights.items()}


def head(*widths: int) -> Weights:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return {f"{2 * i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.state_dict().items()}


def moco(backbone: Weights, version: int) -> dict[str, Any]:
    queue = {"module.queue": torch.randn(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    names = ("base_encoder", "momentum_encoder") if version == 3 else ("encoder_q", "encoder_k")
    projector = {1: {f"fc.{k}": v for k, v in nn.Linear(512, 8).state_dict().items()}}.get(
        version, prefixed(head(512, 512, 8), "fc.")
    )
    model = {
        **prefixed(backbone | projector, f"module.{names[0]}."),
        **other(backbone | projector, f"module.{names[1]}."),
        **(prefixed(head(8, 16, 8), "module.predictor.") if version == 3 else queue),
    }
    return {"epoch": 200, "arch": "resnet18", "state_dict": model, "optimizer": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_moco_resnets(tmp_path: Path, resnet: Any, version: int) -> None:
    found = imported(moco(without_head(resnet), version), tmp_path)
    assert (found.format, found.config.name, found.facts["epoch"]) == ("moco", "resnet18", 200)
    assert set(found.heads) == ({"fc", "predictor"} if version == 3 else {"fc"})
    assert "momentum_encoder" in found.facts["ignored"] if version == 3 else "queue" in found.facts["ignored"]
    assert_same(found.backbone, *resnet_features(resnet))


def moco_v3_vit(width: int) -> Any:
    """MoCo v3's ViT: 12 heads whatever the width, position embeddings that are computed."""
    model = alive(VisionTransformer(img_size=64, patch_size=16, embed_dim=width, depth=12, num_heads=12, num_classes=0))
    rows, columns = np.divmod(np.arange(16), 4)
    omega = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    parts = [f(place[:, None] * omega) for place in (rows, columns) for f in (np.sin, np.cos)]
    table = np.concatenate([np.zeros((1, width)), np.concatenate(parts, axis=1)])
    model.pos_embed.data = torch.from_numpy(table).float()[None]
    return model


def test_moco_v3s_small_vit_has_12_heads(tmp_path: Path) -> None:
    """No shape shows it: the weights fit timm's ViT-S with 6 heads, and would give other features."""
    torch.manual_seed(0)
    model = moco_v3_vit(384)
    weights = model.state_dict() | prefixed(head(384, 32, 32, 8), "head.")
    tree = {"state_dict": {**prefixed(weights, "module.base_encoder."), **other(weights, "module.momentum_encoder.")}}
    found = imported({**tree, "arch": "vit_small", "epoch": 300}, tmp_path)
    assert (found.format, found.config.name, found.config.image_size) == ("moco", "moco_v3_vit_small", 64)
    assert_same(found.backbone, *vit_features(model))
    path = tmp_path / "weights.pth"
    for arch in ("vit_small_patch16_224", BackboneConfig("vit_small_patch16_224", image_size=64)):
        with pytest.raises(UserError, match="holds moco_v3_vit_small, whose heads are not those of vit_small_patch16"):
            load_checkpoint(path, arch=arch)
    # ... and where the embeddings are learned, timm's number of heads is meant
    assert (
        imported({k: v + 0.5 for k, v in model.state_dict().items()}, tmp_path).config.name == "vit_small_patch16_224"
    )


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_dino_and_ibot_teachers(tmp_path: Path, request: pytest.FixtureRequest, kind: str, method: str) -> None:
    model = request.getfixturevalue(kind)
    weights = without_head(model, "fc" if kind == "resnet" else "head")
    teacher = prefixed(weights, "backbone.") | prefixed(head(8, 8, 8), "head.mlp.")
    student = other(weights, "module.backbone.") | prefixed(head(8, 8, 8), "module.head.mlp.")
    if method == "ibot":
        teacher["backbone.masked_embed"] = torch.zeros(1, 8)
        student["module.backbone.masked_embed"] = torch.zeros(1, 8)
    tree = {
        "student": student,
        "teacher": prefixed(teacher, "module.") if kind == "resnet" else teacher,
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny"),
        f"{method}_loss": {"center": torch.zeros(1, 8)},
    }
    found = imported(tree, tmp_path)
    assert (found.format, found.facts["weights"]) == ("dino", "teacher.backbone")
    assert set(found.heads) == {"head"}
    assert_same(found.backbone, *(resnet_features(model) if kind == "resnet" else vit_features(model)))
    assert_same(
        imported(weights, tmp_path).backbone, *(resnet_features(model) if kind == "resnet" else vit_features(model))
    )


@pytest.mark.parametrize("decoder", [False, True])
def test_mae(tmp_path: Path, vit: Any, decoder: bool) -> None:
    more = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        **prefixed(head(192, 8), "decoder_embed."),
        **prefixed(head(8, 8), "decoder_blocks.0.attn."),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.ones(8, 8),
    }
    found = imported({"model": {**without_head(vit, "head"), **(more if decoder else {})}}, tmp_path)
    assert found.format == ("mae" if decoder else "timm")
    assert_same(found.backbone, *vit_features(vit))


def test_pixpro(tmp_path: Path, resnet: Any) -> None:
    weights = without_head(resnet)
    model = prefixed(weights, "module.encoder.") | other(weights, "module.encoder_k.")
    model |= prefixed(head(8, 8), "module.projector.") | other(head(8, 8), "module.projector_k.")
    model |= prefixed(head(8, 8), "module.value_transform.")
    found = imported({"model": model}, tmp_path)
    assert (found.format, set(found.heads)) == ("pixpro", {"projector", "value_transform"})
    assert_same(found.backbone, *resnet_features(resnet))


@pytest.mark.parametrize("root", ["backbone", "encoder"])
def test_solo_learn(tmp_path: Path, resnet: Any, root: str) -> None:
    weights = without_head(resnet)
    model = prefixed(weights, f"{root}.") | other(weights, f"momentum_{root}.")
    model |= prefixed(head(512, 16, 8), "projector.") | other(head(512, 16, 8), "momentum_projector.")
    model |= prefixed(nn.Linear(512, 5).state_dict(), "classifier.") | {"queue": torch.randn(2, 8, 4)}
    found = imported(lightning(model), tmp_path)
    assert (found.format, found.config.stem) == ("solo-learn", "imagenet")
    assert set(found.heads) == {"projector", "classifier"}
    assert_same(found.backbone, *resnet_features(resnet))


def test_solo_learns_stem_for_cifar_pads_by_two(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
    model.maxpool = nn.Identity()
    alive(model)
    weights = prefixed(without_head(model), "backbone.") | prefixed(nn.Linear(512, 5).state_dict(), "classifier.")
    found = imported(lightning(weights), tmp_path)
    assert (found.format, found.config.stem) == ("solo-learn", "small_padded")
    assert_same(found.backbone, *resnet_features(model, images(32)), size=32)
    # stable-pretraining pads by one
    model.conv1.padding = (1, 1)
    found = imported(lightning({k: v for k, v in weights.items() if k.startswith("backbone.")}), tmp_path)
    assert found.config.stem == "small"
    assert_same(found.backbone, *resnet_features(model, images(32)), size=32)


@pytest.mark.parametrize("teacher", [False, True])
def test_stable_pretraining(tmp_path: Path, vit: Any, teacher: bool) -> None:
    weights = without_head(vit, "head")
    if teacher:
        model = prefixed(weights, "backbone.teacher.") | other(weights, "backbone.student.")
        model |= prefixed(head(192, 8), "projector.teacher.") | prefixed(head(192, 8), "projector.student.")
        model |= {f"{part}.ema_coefficient": torch.tensor(0.9) for part in ("backbone", "projector")}
    else:
        model = prefixed(weights, "backbone.") | prefixed(head(192, 8), "projector.")
        model |= prefixed(nn.Linear(192, 4).state_dict(), "callbacks_modules.linear_probe.")
    found = imported(lightning(model), tmp_path)
    assert (found.format, set(found.heads)) == ("stable-pretraining", {"projector"})
    assert_same(found.backbone, *vit_features(vit))


MM_META = {"meta": {"epoch": 200, "mmselfsup_version": "0.7", "time": np.float64(1.0)}}


def test_mmselfsup_resnet(tmp_path: Path, resnet: Any) -> None:
    weights = without_head(resnet)
    model = prefixed(weights, "backbone.") | prefixed(head(512, 8), "neck.")
    model |= {"queue": torch.randn(8, 4), "queue_ptr": torch.zeros(1)} | other(weights, "encoder_k.module.0.")
    found = imported({**MM_META, "state_dict": model}, tmp_path)
    assert (found.format, set(found.heads)) == ("mmpretrain", {"neck"})
    assert_same(found.backbone, *resnet_features(resnet))
    bare = imported({"state_dict": weights, "author": "DenseCL"}, tmp_path, format="mmpretrain")
    assert_same(bare.backbone, *resnet_features(resnet))


MM_VIT = (
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"blocks\.(\d+)\.norm(\d)\.", r"layers.\1.ln\2."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
    (r"blocks\.(\d+)\.attn\.", r"layers.\1.attn."),
    (r"norm\.", "ln1."),
)


def renamed(weights: Weights, rules: tuple[tuple[str, str], ...]) -> Weights:
    found = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            new = re.sub(f"^{pattern}", replacement, name)
            if new != name:
                name = new
                break
        found[name] = value
    return found


def test_mmpretrain_vit(tmp_path: Path, vit: Any) -> None:
    weights = renamed(without_head(vit, "head"), MM_VIT)
    assert "layers.0.ffn.layers.0.0.weight" in weights
    found = imported({**MM_META, "state_dict": prefixed(weights, "backbone.")}, tmp_path)
    assert (found.format, found.config.name) == ("mmpretrain", "vit_tiny_patch16_224")
    assert_same(found.backbone, *vit_features(vit))


def test_mmpretrain_convnext(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = alive(timm.create_model("convnext_atto", num_classes=0))
    rules = (
        (r"stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.", r"stages.\1.\2.depthwise_conv."),
        (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.", r"stages.\1.\2.pointwise_conv\3."),
        (r"stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2."),
        (r"head\.norm\.", "norm3."),
    )
    weights = renamed(model.state_dict(), rules)
    assert "stages.0.0.pointwise_conv1.weight" in weights
    found = imported({"state_dict": weights}, tmp_path)
    assert (found.format, found.config.name) == ("mmpretrain", "convnext_atto")
    with torch.no_grad():
        assert_same(found.backbone, model(images()), model.forward_features(images()))


def test_detectron2(tmp_path: Path, resnet: Any) -> None:
    def name(ours: str) -> str:
        ours = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", ours)
        ours = ours if ours.startswith("res") else f"stem.{ours}"
        ours = re.sub(r"bn(\d)", r"conv\1.norm", ours)
        return ours.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")

    weights = {name(k): v for k, v in without_head(resnet).items() if not k.endswith("num_batches_tracked")}
    assert "res2.0.conv1.norm.running_mean" in weights
    found = imported({"model": weights, "matching_heuristics": True}, tmp_path)
    assert found.format == "detectron2"
    assert_same(found.backbone, *resnet_features(resnet))


@pytest.mark.parametrize("prefix", ["net.", "model.encoder.", "_forward_module.learner.trunk.0."])
def test_plain_lightning_with_any_prefix(tmp_path: Path, resnet: Any, prefix: str) -> None:
    found = imported(lightning(prefixed(resnet.state_dict(), prefix)), tmp_path)
    assert (found.format, set(found.heads)) == ("lightning", {"fc"})
    assert_same(found.backbone, *resnet_features(resnet))


def test_any_timm_network_below_any_prefix(tmp_path: Path) -> None:
    """All names of a headless DenseNet begin with ``features.`` already."""
    model: Any = alive(timm.create_model("densenet121", num_classes=0))
    with torch.no_grad():
        expected = model.forward_features(images())
    for prefix in ("", "model.encoder."):
        found = imported(lightning(prefixed(model.state_dict(), prefix)), tmp_path, arch="densenet121")
        assert_same(found.backbone, expected.mean((2, 3)), expected)


# What is missing, left over or of another shape is named.

LAYOUTS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "vicregl": lambda w: {
        "model": {**prefixed(w, "module.backbone."), "module.maps_projector.0.weight": torch.ones(2, 2)}
    },
    "vicreg": lambda w: {
        "epoch": 1,
        "model": {**prefixed(w, "module.backbone."), **prefixed(head(8, 8), "module.projector.")},
    },
    "moco": lambda w: moco(w, 2),
    "dino": lambda w: {"teacher": prefixed(w, "backbone."), "student": prefixed(w, "module.backbone.")},
    "lightly": lambda w: lightning(prefixed(w, "backbone.") | prefixed(head(8, 8), "projection_head.layers.")),
    "solo-learn": lambda w: lightning(prefixed(w, "backbone.") | prefixed(head(8, 8), "classifier.")),
    "stable-pretraining": lambda w: lightning(prefixed(w, "backbone.") | prefixed(head(8, 8), "callbacks_modules.p.")),
    "mmpretrain": lambda w: {**MM_META, "state_dict": prefixed(w, "backbone.")},
    "pixpro": lambda w: {"model": prefixed(w, "module.encoder.") | prefixed(w, "module.encoder_k.")},
    "torchvision": lambda w: w,
    "lightning": lambda w: lightning(prefixed(w, "net.")),
}


@pytest.mark.parametrize("format_", LAYOUTS)
def test_every_weight_matters(tmp_path: Path, resnet: Any, format_: str) -> None:
    weights = without_head(resnet)
    build = LAYOUTS[format_]
    assert imported(build(weights), tmp_path).format == format_
    few = {name: value for name, value in weights.items() if not name.startswith("layer4.1.")}
    path = re.escape(str(tmp_path / "weights.pth"))
    said = rf"{path} \(format {format_}\): .*layer4\.1\.bn1\.bias, layer4\.1\.bn1\.num_batches_tracked, \S+ and 9 more$"
    with pytest.raises(UserError, match=rf"no weights for {said.split(': .*')[1]}"):
        imported(build(few), tmp_path, arch="resnet18")
    with pytest.raises(
        UserError, match=rf"^{path} \(format {format_}\): not resnet18: unknown weights layer1\.odd\.gate"
    ):
        imported(build({**weights, "layer1.odd.gate": torch.ones(1)}), tmp_path)
    shape = r"not resnet18: layer2\.0\.conv1\.weight is \(7, 7, 7, 7\), not \(128, 64, 3, 3\)"
    with pytest.raises(UserError, match=shape):
        imported(build({**weights, "layer2.0.conv1.weight": torch.ones(7, 7, 7, 7)}), tmp_path)


@pytest.mark.parametrize("format_", sorted(set(LAYOUTS) - {"torchvision", "lightning"}))
def test_parts_that_a_format_does_not_know_are_named(tmp_path: Path, resnet: Any, format_: str) -> None:
    tree = LAYOUTS[format_](without_head(resnet))
    key = next(key for key in ("state_dict", "model", "teacher") if key in tree)
    wrapped = all(name.startswith("module.") for name in tree[key])
    prefix = "module." if wrapped else ""
    tree[key] = {**tree[key], **{f"{prefix}gadget.{i}": torch.ones(1) for i in range(5)}}
    with pytest.raises(UserError, match=r"unknown weights gadget\.0, gadget\.1, gadget\.2 and 2 more$"):
        imported(tree, tmp_path)


def test_architectures_that_do_not_fit(tmp_path: Path, resnet: Any) -> None:
    path = save(without_head(resnet), tmp_path)
    with pytest.raises(UserError, match=r"it holds resnet18, not resnet34: no weights for layer1\.2\.bn1\.bias"):
        load_checkpoint(path, arch="resnet34")
    with pytest.raises(UserError, match="unknown backbone 'resnet19': did you mean 'resnet1"):
        load_checkpoint(path, arch="resnet19")
    with pytest.raises(UserError, match="unknown format 'mocco': did you mean 'moco'"):
        load_checkpoint(path, format="mocco")
    odd = {name: value for name, value in without_head(resnet).items() if not name.startswith("layer3.1.")}
    with pytest.raises(UserError, match=r"a ResNet with \(2, 2, 1, 2\) blocks, 64 and 64 channels is none"):
        imported(odd, tmp_path)
    with pytest.raises(UserError, match=r"no weights of a backbone \(encoder\.\) are in it, only conv1\.weight"):
        load_checkpoint(save(without_head(resnet), tmp_path), format="pixpro")
    with pytest.raises(UserError, match="is not finite: the checkpoint is of a run that failed"):
        imported({**without_head(resnet), "bn1.weight": torch.full((64,), torch.nan)}, tmp_path)
    with pytest.raises(UserError, match="are the same weight"):
        imported({**without_head(resnet), "layer2.0.shortcut.0.weight": torch.ones(128, 64, 1, 1)}, tmp_path)


def test_the_list_of_formats() -> None:
    assert set(FORMATS) == set(LAYOUTS) | {"ssl-toolkit", "mae", "timm", "detectron2"}
