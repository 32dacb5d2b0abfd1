"""The ConvNeXts of VICRegL's published code."""

from __future__ import annotations

from timm.models.convnext import ConvNeXtBlock

from ssl_toolkit.backbones.base import BackboneConfig
from ssl_toolkit.backbones.timm_backbone import TimmBackbone, timm_model

VICREGL_CONVNEXTS = {
    "vicregl_convnext_small": "convnext_small",
    "vicregl_convnext_base": "convnext_base",
    "vicregl_convnext_xlarge": "convnext_xlarge",
}
"""Our names to timm's."""


def vicregl_convnext(config: BackboneConfig) -> TimmBackbone:
    """A ConvNeXt without layer scale that normalises its last map before pooling, as VICRegL's code has it.

    ``maps`` come after that norm and ``pooled`` is their plain mean.
    """
    model = timm_model(config, VICREGL_CONVNEXTS[config.name], head_norm_first=True)
    for block in model.modules():
        if isinstance(block, ConvNeXtBlock):
            block.gamma = None  # timm drops ls_init_value=None without a word
    return TimmBackbone(config, model)
