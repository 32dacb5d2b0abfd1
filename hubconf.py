"""The seven backbones that VICRegL's authors publish, for ``torch.hub.load``, under their names.

``backbone(images)`` gives ``Features(maps (B, C, H, W), pooled (B, C))``; ``backbone.preprocess`` makes input of
pictures. The weights are CC-BY-NC.
"""

import importlib.util as _util
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import ssl_toolkit

if _TYPE_CHECKING:
    from ssl_toolkit.backbones import Backbone as _Backbone

if _util.find_spec("ssl_toolkit.zoo") is None:  # not installed: methods/, configs/ and zoo/ lie at the top
    ssl_toolkit.__path__.append(str(_Path(__file__).resolve().parent))

dependencies = ["torch", "torchvision", "timm", "lightning", "hydra", "omegaconf", "safetensors", "rich"]


def _backbone(name: str, pretrained: bool, options: dict[str, _Any]) -> "_Backbone":
    from ssl_toolkit.backbones import create_backbone
    from ssl_toolkit.loading import load_backbone, preprocess_of
    from ssl_toolkit.zoo import published

    entry = published(f"vicregl_{name}")
    if pretrained:
        return load_backbone(entry.name, **options)
    backbone = create_backbone(entry.arch).eval()
    backbone.preprocess = preprocess_of({}, backbone, **options)
    return backbone


def resnet50_alpha0p9(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ResNet-50, alpha 0.9. ``pretrained=False`` has fresh weights; ``size=`` and ``resize=`` are of ``preprocess``."""
    return _backbone("resnet50_alpha0p9", pretrained, options)


def resnet50_alpha0p75(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ResNet-50, alpha 0.75; see `resnet50_alpha0p9`."""
    return _backbone("resnet50_alpha0p75", pretrained, options)


def convnext_small_alpha0p9(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ConvNeXt-S, alpha 0.9; see `resnet50_alpha0p9`."""
    return _backbone("convnext_small_alpha0p9", pretrained, options)


def convnext_small_alpha0p75(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ConvNeXt-S, alpha 0.75; see `resnet50_alpha0p9`."""
    return _backbone("convnext_small_alpha0p75", pretrained, options)


def convnext_base_alpha0p9(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ConvNeXt-B, alpha 0.9; see `resnet50_alpha0p9`."""
    return _backbone("convnext_base_alpha0p9", pretrained, options)


def convnext_base_alpha0p75(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ConvNeXt-B, alpha 0.75; see `resnet50_alpha0p9`."""
    return _backbone("convnext_base_alpha0p75", pretrained, options)


def convnext_xlarge_alpha0p75(pretrained: bool = True, **options: _Any) -> "_Backbone":
    """ConvNeXt-XL, alpha 0.75, trained on ImageNet-22k; see `resnet50_alpha0p9`."""
    return _backbone("convnext_xlarge_alpha0p75", pretrained, options)
