"""Published networks that differ from timm's of their kind: ResNets twice as wide, and MoCo v3's small ViTs."""

from __future__ import annotations

from typing import Any

from timm.models.resnet import Bottleneck
from torch import nn

from ssl_toolkit.backbones.base import BackboneConfig
from ssl_toolkit.backbones.timm_backbone import TimmBackbone, timm_model

WIDE_RESNETS = {"resnet50x2": (3, 4, 6, 3), "resnet200x2": (3, 24, 36, 3)}
"""Names to blocks of each stage. Every layer is twice as wide as a ResNet's, the stem too: 4096 features."""

WIDE_CHANNELS = (128, 256, 512, 1024)

MOCO_V3_VITS = {"moco_v3_vit_tiny": "vit_tiny_patch16_224", "moco_v3_vit_small": "vit_small_patch16_224"}
"""Our names to timm's networks of the same shapes."""

MOCO_V3_HEADS = 12


def wide_resnet(config: BackboneConfig) -> TimmBackbone:
    """A ResNet with every layer twice as wide (93 M weights with 50 layers, 250 M with 200), as VICReg publishes them.

    The width is that of SimCLR and SwAV's code (``widen=2``), not that of Wide ResNets (``wide_resnet50_2``), which
    widen the middle of each block alone.
    """
    blocks = WIDE_RESNETS[config.name]
    model: Any = timm_model(config, "resnet50", layers=blocks, channels=WIDE_CHANNELS)
    width = WIDE_CHANNELS[0]
    old = model.conv1  # timm's stem has 64 channels, whatever the stages have
    model.conv1 = _conv(config.in_channels, width, old.kernel_size, old.stride, old.padding)
    model.bn1 = nn.BatchNorm2d(width)
    first: Bottleneck = model.layer1[0]
    first.conv1 = _conv(width, first.conv1.out_channels, 1, 1, 0)
    first.downsample[0] = _conv(width, first.downsample[0].out_channels, 1, 1, 0)  # type: ignore[index,union-attr,operator]
    model.feature_info[0]["num_chs"] = width
    return TimmBackbone(config, model)


def _conv(inside: int, outside: int, kernel: Any, stride: Any, padding: Any) -> nn.Conv2d:
    conv = nn.Conv2d(inside, outside, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def moco_v3_vit(config: BackboneConfig) -> TimmBackbone:
    """A ViT with 12 attention heads, where timm's of the same shapes has 3 or 6.

    MoCo v3's ViT-S, and solo-learn's ViT-Ti for it. Weights of the one fit the other, and give other features.
    """
    return TimmBackbone(config, timm_model(config, MOCO_V3_VITS[config.name], num_heads=MOCO_V3_HEADS))
