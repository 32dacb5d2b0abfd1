"""Backbones by name: this package's own and any timm model with feature maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import timm
from omegaconf import DictConfig

from ssl_toolkit.backbones.base import Backbone, BackboneConfig
from ssl_toolkit.backbones.timm_backbone import TimmBackbone, timm_model
from ssl_toolkit.backbones.tiny_resnet import TinyResNet
from ssl_toolkit.backbones.variants import MOCO_V3_VITS, WIDE_RESNETS, moco_v3_vit, wide_resnet
from ssl_toolkit.backbones.vicregl import VICREGL_CONVNEXTS, vicregl_convnext
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.registry import Registry, typed

backbones: Registry[Backbone] = Registry("backbone")
"""Own backbones: a class or function ``(BackboneConfig) -> Backbone``, registered with that schema."""

backbones.register("tiny_resnet", BackboneConfig)(TinyResNet)
for _name in VICREGL_CONVNEXTS:
    backbones.register(_name, BackboneConfig)(vicregl_convnext)
for _name in WIDE_RESNETS:
    backbones.register(_name, BackboneConfig)(wide_resnet)
for _name in MOCO_V3_VITS:
    backbones.register(_name, BackboneConfig)(moco_v3_vit)

STEMS = ("imagenet", "small", "small_padded")


def backbone_names() -> list[str]:
    """All names that `create_backbone` knows: this package's own, then timm's."""
    return backbones.names() + timm.list_models()


def create_backbone(config: BackboneConfig | Mapping[str, Any] | DictConfig | str) -> Backbone:
    """A backbone with fresh weights, in training mode.

    Args:
        config: a `BackboneConfig`, its values as a mapping, or a name alone.

    Raises:
        UserError: an unknown name (with the nearest ones), an unknown option, a value out of range, an option
            that the architecture does not have, or a timm model without feature maps.
    """
    checked = _checked(config)
    if checked.name in backbones.names():
        return backbones.entry(checked.name).factory(checked)
    if not timm.is_model(checked.name):
        raise unknown("backbone", checked.name, backbone_names())
    return TimmBackbone(checked, timm_model(checked))


def _checked(config: BackboneConfig | Mapping[str, Any] | DictConfig | str) -> BackboneConfig:
    if isinstance(config, str):
        config = {"name": config}
    elif isinstance(config, BackboneConfig):
        config = dataclasses.asdict(config)
    if not config.get("name"):
        raise UserError("backbone.name is not set: give a name, such as backbone.name=resnet18")
    checked = typed(BackboneConfig, config, "backbone")
    if checked.in_channels < 1:
        raise UserError(f"backbone.in_channels must be 1 or more, not {checked.in_channels}")
    if checked.stem not in STEMS:
        raise unknown("backbone.stem", checked.stem, STEMS)
    if not 0 <= checked.drop_path < 1:
        raise UserError(f"backbone.drop_path must be at least 0 and below 1, not {checked.drop_path}")
    if checked.image_size is not None and checked.image_size < 1:
        raise UserError(f"backbone.image_size must be 1 or more, not {checked.image_size}")
    return checked
