"""The ConvNeXts of VICRegL's published code, and a small one of their kind."""

from __future__ import annotations

from typing import Any

from timm.models.convnext import ConvNeXtBlock
from torch import nn

from ssl_toolkit.backbones.base import BackboneConfig
from ssl_toolkit.backbones.timm_backbone import TimmBackbone, timm_model

VICREGL_CONVNEXTS = {
    "vicregl_convnext_mini": "convnext_atto",
    "vicregl_convnext_small": "convnext_small",
    "vicregl_convnext_base": "convnext_base",
    "vicregl_convnext_xlarge": "convnext_xlarge",
}
"""Our names to timm's."""

_MINI: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192), "conv_mlp": False}


def vicregl_convnext(config: BackboneConfig) -> TimmBackbone:
    """A ConvNeXt without layer scale that normalises its last map before pooling, as VICRegL's code has it.

    ``maps`` come after that norm and ``pooled`` is their plain mean. ``vicregl_convnext_mini`` is ours, for images of
    about 48 pixels on a CPU: 0.6 M weights, patches of 2x2 pixels and so a total stride of 16.
    """
    mini = config.name == "vicregl_convnext_mini"
    model: Any = timm_model(config, VICREGL_CONVNEXTS[config.name], head_norm_first=True, **(_MINI if mini else {}))
    if mini:
        stem = nn.Conv2d(config.in_channels, _MINI["dims"][0], kernel_size=2, stride=2)
        nn.init.trunc_normal_(stem.weight, std=0.02)
        nn.init.zeros_(stem.bias)  # type: ignore[arg-type]
        model.stem[0] = stem
    for block in model.modules():
        if isinstance(block, ConvNeXtBlock):
            block.gamma = None  # timm drops ls_init_value=None without a word
    return TimmBackbone(config, model)
