"""Weights under the names of torchvision, detectron2 and mmdetection.

The names are those of torchvision 0.26 to 0.29, of detectron2's ``tools/convert-torchvision-to-d2.py``, and of
mmdetection's ResNet and mmpretrain's ConvNeXt.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_toolkit.backbones.timm_backbone import TimmBackbone
from ssl_toolkit.backbones.vicregl import VICREGL_CONVNEXTS
from ssl_toolkit.files import atomic_path
from ssl_toolkit.zoo.exporters.base import Subject, features_of, not_in, plain_weights, require_equal

RESNETS = {
    "resnet18": (18, 1, 64),
    "resnet34": (34, 1, 64),
    "resnet50": (50, 1, 64),
    "resnet101": (101, 1, 64),
    "resnet152": (152, 1, 64),
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
}
"""Depth, groups and width of a group of those that all three libraries have, under the names of timm."""

CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
"""With a norm after pooling: torchvision's and timm's."""

MMPRETRAIN_CONVNEXTS = {name: name.removeprefix("convnext_") for name in (*CONVNEXTS, "convnext_xlarge")} | {
    "vicregl_convnext_mini": {"depths": [1, 1, 2, 1], "channels": [24, 48, 96, 192]},
    "vicregl_convnext_small": "small",
    "vicregl_convnext_base": "base",
    "vicregl_convnext_xlarge": "xlarge",
}
"""Our names to ``arch`` of mmpretrain's ConvNeXt."""

TORCHVISION_RENAMES = (
    (r"stem\.(\d)\.", r"features.0.\1."),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.", r"features.{stage}.\2.block.0."),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm\.", r"features.{stage}.\2.block.2."),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc1\.", r"features.{stage}.\2.block.3."),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc2\.", r"features.{stage}.\2.block.5."),
    (r"stages\.(\d)\.blocks\.(\d+)\.gamma", r"features.{stage}.\2.layer_scale"),
    (r"stages\.(\d)\.downsample\.(\d)\.", r"features.{before}.\2."),
    (r"head\.norm\.", r"classifier.0."),
)
"""Of a ConvNeXt: ``{stage}`` is 2n + 1 and ``{before}`` 2n for stage n."""

MMPRETRAIN_RENAMES = (
    (r"stem\.(\d)\.", r"downsample_layers.0.\1."),
    (r"stages\.(\d)\.downsample\.(\d)\.", r"downsample_layers.\1.\2."),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.", r"stages.\1.\2.depthwise_conv."),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm\.", r"stages.\1.\2.norm."),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc1\.", r"stages.\1.\2.pointwise_conv1."),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc2\.", r"stages.\1.\2.pointwise_conv2."),
    (r"stages\.(\d)\.blocks\.(\d+)\.gamma", r"stages.\1.\2.gamma"),
    (r"(?:head\.norm|norm_pre)\.", r"norm3."),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        found = re.match(pattern, name)
        if found:
            stage = int(found[1]) if found.re.groups else 0
            start = found.expand(replacement.replace("{stage}", str(2 * stage + 1)).replace("{before}", str(2 * stage)))
            return start + name[found.end() :]
    return name


def _weights(subject: Subject, format_: str, known: Collection[str], which: str) -> dict[str, Tensor]:
    """The backbone's weights under timm's names.

    Raises:
        UserError: its architecture is not among ``known``, or it has another stem.
    """
    backbone = subject.backbone
    if backbone.config.name not in known or not isinstance(backbone, TimmBackbone):
        raise not_in(subject, format_, f"it takes {which}; timm, onnx and torch_export take more")
    if backbone.config.stem != "imagenet":
        raise not_in(subject, format_, f"stem={backbone.config.stem} is not that library's 7x7 convolution")
    return plain_weights(backbone.model.state_dict())


def write_torchvision(subject: Subject, out: Path) -> list[str]:
    """A state dict that ``torchvision.models`` loads strictly once its classifier is replaced by an identity.

    Raises:
        UserError: torchvision has no such network.
    """
    known = {**RESNETS, **dict.fromkeys(CONVNEXTS)}
    config = subject.backbone.config
    if config.name in VICREGL_CONVNEXTS:
        raise not_in(subject, "torchvision", "torchvision's ConvNeXt has layer scale and normalises after pooling")
    weights = _weights(subject, "torchvision", known, "ResNet, ResNeXt and ConvNeXt")
    if config.in_channels != 3:
        raise not_in(subject, "torchvision", f"its networks take 3 channels, this one {config.in_channels}")
    network = torchvision.models.get_model(config.name, weights=None).eval()
    if config.name in RESNETS:
        head = "fc"
        network.fc = nn.Identity()
    else:
        head = "classifier[2]"
        network.classifier[2] = nn.Identity()
        weights = {_renamed(name, TORCHVISION_RENAMES): value for name, value in weights.items()}
        weights = {n: v[:, None, None] if n.endswith("layer_scale") else v for n, v in weights.items()}
    network.load_state_dict(weights)
    images = subject.random_images(2)
    with torch.no_grad():
        require_equal(network(images), features_of(subject, images).pooled, f"torchvision's {config.name}")
    _write(weights, out)
    read = f'safetensors.torch.load_file("{out}")' if out.suffix == ".safetensors" else f'torch.load("{out}")'
    return [
        f"model = torchvision.models.{config.name}(); model.{head} = torch.nn.Identity(); model.load_state_dict({read})"
    ]


def write_detectron2(subject: Subject, out: Path) -> list[str]:
    """``{"model": ...}`` for detectron2's checkpointer: its ResNet's names, by its own conversion of torchvision's.

    Raises:
        UserError: not a ResNet.
    """
    weights = _weights(subject, "detectron2", RESNETS, "ResNet and ResNeXt")
    # its BatchNorm is frozen and counts nothing
    model = {detectron2_name(n): v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    with atomic_path(out) as temporary:
        torch.save({"model": model, "__author__": "ssl-toolkit", "matching_heuristics": True}, temporary)
    depth, groups, width = RESNETS[subject.backbone.config.name]
    mean, std = (
        [round(255 * value, 3) for value in values] for values in (subject.preprocess.mean, subject.preprocess.std)
    )
    more = f" MODEL.RESNETS.NUM_GROUPS {groups} MODEL.RESNETS.WIDTH_PER_GROUP {width}" if groups > 1 else ""
    more += " MODEL.RESNETS.RES2_OUT_CHANNELS 64" if depth < 50 else ""
    return [
        f"MODEL.WEIGHTS {out} MODEL.RESNETS.DEPTH {depth} MODEL.RESNETS.STRIDE_IN_1X1 False{more}",
        f'INPUT.FORMAT RGB MODEL.PIXEL_MEAN "{mean}" MODEL.PIXEL_STD "{std}"',
    ]


def detectron2_name(name: str) -> str:
    """detectron2's name of a ResNet's weight: ``layer1.0.bn2.bias`` is ``res2.0.conv2.norm.bias``."""
    name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = name if name.startswith("res") else f"stem.{name}"
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def write_mmdetection(subject: Subject, out: Path) -> list[str]:
    """``{"state_dict": ...}`` without prefix for ``init_cfg`` of mmdetection's ResNet or mmpretrain's ConvNeXt.

    Raises:
        UserError: neither of them.
    """
    name = subject.backbone.config.name
    weights = _weights(subject, "mmdetection", {**RESNETS, **MMPRETRAIN_CONVNEXTS}, "ResNet, ResNeXt and ConvNeXt")
    init = f'init_cfg=dict(type="Pretrained", checkpoint="{out}")'
    if name in RESNETS:
        depth, groups, width = RESNETS[name]
        kind = f'"ResNeXt", groups={groups}, base_width={width}' if groups > 1 else '"ResNet"'
        built = f'backbone=dict(type={kind}, depth={depth}, style="pytorch", {init})'
    else:
        weights = {_renamed(each, MMPRETRAIN_RENAMES): value for each, value in weights.items()}
        arch, ours = MMPRETRAIN_CONVNEXTS[name], name in VICREGL_CONVNEXTS
        more = ", stem_patch_size=2" if name == "vicregl_convnext_mini" else ""
        built = (
            f'backbone=dict(type="mmpretrain.ConvNeXt", arch={arch!r}{more}, out_indices=[0, 1, 2, 3], '
            f"layer_scale_init_value={0.0 if ours else 1.0}, gap_before_final_norm=False, {init})"
        )
    with atomic_path(out) as temporary:
        torch.save({"state_dict": weights, "meta": {"author": "ssl-toolkit", "backbone": name}}, temporary)
    mean, std = (
        [round(255 * value, 3) for value in values] for values in (subject.preprocess.mean, subject.preprocess.std)
    )
    return [built, f"data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True)"]


def _pixel_statistics(subject: Subject) -> tuple[list[float], list[float]]:
    """Mean and std of values 0 to 255."""
    prepared = subject.preprocess
    return [round(255 * value, 3) for value in prepared.mean], [round(255 * value, 3) for value in prepared.std]


def _write(weights: dict[str, Tensor], out: Path) -> None:
    with atomic_path(out) as temporary:
        if out.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in weights.items()}, temporary, {"format": "pt"})
        else:
            torch.save(weights, temporary)
