"""Weights under timm's names, with the arguments of ``timm.create_model`` that they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.backbones.probe import reason
from ssl_toolkit.backbones.timm_backbone import TimmBackbone
from ssl_toolkit.backbones.variants import MOCO_V3_HEADS, MOCO_V3_VITS, WIDE_RESNETS
from ssl_toolkit.backbones.vicregl import VICREGL_CONVNEXTS
from ssl_toolkit.files import atomic_path
from ssl_toolkit.zoo.exporters.base import Subject, features_of, not_in, plain_weights, require_equal

MINI = "vicregl_convnext_mini"
"""Patches of 2 pixels, behind which timm's ConvNeXt would halve the map once more."""


@dataclass(frozen=True)
class TimmModel:
    """A network of timm's.

    Attributes:
        name: of ``timm.create_model``.
        arguments: further ones, ``num_classes=0`` among them.
        weights: its state dict.
    """

    name: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor]

    def call(self, **more: Any) -> str:
        """The Python line that builds it."""
        words = [repr(self.name), *(f"{key}={value!r}" for key, value in {**self.arguments, **more}.items())]
        return f"timm.create_model({', '.join(words)})"


def timm_form(subject: Subject, format_: str = "timm") -> TimmModel:
    """The backbone as timm has it, loaded into timm's network and compared with it.

    Raises:
        UserError: timm has no such network.
    """
    backbone = subject.backbone
    if backbone.config.stem != "imagenet":
        raise not_in(
            subject, format_, f"timm has no stem={backbone.config.stem}; use safetensors, onnx or torch_export"
        )
    if not isinstance(backbone, TimmBackbone) or not in_timm(subject):
        raise not_in(subject, format_, "timm has no such network; use safetensors, onnx or torch_export")
    weights = plain_weights(backbone.model.state_dict())
    name, arguments = timm_arguments(backbone.config)
    if backbone.config.name in VICREGL_CONVNEXTS:
        weights |= unit_layer_scale(backbone.model)
    try:
        network = timm.create_model(name, **arguments).eval()
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise not_in(subject, format_, f"timm's {name} is another network ({reason(error)})") from error
    images = subject.random_images(2)
    wanted = features_of(subject, images)
    twin = TimmBackbone(backbone.config, network).eval()
    with torch.no_grad():
        found = twin(images)
    require_equal(found.maps, wanted.maps, f"timm's {name}")
    require_equal(found.pooled, wanted.pooled, f"timm's {name}, pooled,")
    return TimmModel(name, arguments, weights)


def in_timm(subject: Subject) -> bool:
    """Whether timm can build the network at all."""
    config = subject.backbone.config
    own = config.name in (*WIDE_RESNETS, MINI) or not isinstance(subject.backbone, TimmBackbone)
    return config.stem == "imagenet" and not own


def timm_arguments(config: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """Name and arguments for ``timm.create_model``; `unit_layer_scale` says what else a VICRegL ConvNeXt needs."""
    arguments: dict[str, Any] = {"num_classes": 0}
    if config.in_channels != 3:
        arguments["in_chans"] = config.in_channels
    if config.name in VICREGL_CONVNEXTS:
        return VICREGL_CONVNEXTS[config.name], {**arguments, "head_norm_first": True}
    name = MOCO_V3_VITS.get(config.name, config.name)
    if name != config.name:
        arguments["num_heads"] = MOCO_V3_HEADS
    if config.image_size is not None and _takes(name, img_size=config.image_size):
        arguments["img_size"] = config.image_size
    return name, arguments


def _takes(name: str, **options: Any) -> bool:
    try:
        timm.create_model(name, num_classes=0, **options)
    except TypeError:
        return False
    return True


def unit_layer_scale(model: nn.Module) -> dict[str, Tensor]:
    """Layer scales of one, which timm's ConvNeXt insists on having and which change nothing."""
    widths = {
        name.removesuffix("conv_dw.weight"): len(value)
        for name, value in model.state_dict().items()
        if name.endswith("conv_dw.weight")
    }
    return {f"{block}gamma": torch.ones(width) for block, width in widths.items()}


def without_unit_layer_scale(config: BackboneConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the weights of our backbone from those of timm's."""
    if config.name not in VICREGL_CONVNEXTS:
        return dict(tensors)
    return {
        name: value for name, value in tensors.items() if not (name.endswith(".gamma") and bool((value == 1).all()))
    }


def write_timm(subject: Subject, out: Path) -> list[str]:
    """A state dict, ``.safetensors`` or ``.pth``, for ``timm.create_model(..., checkpoint_path=out)``."""
    model = timm_form(subject)
    with atomic_path(out) as temporary:
        if out.suffix == ".safetensors":
            about = {"format": "pt", "timm": json.dumps({"name": model.name, "arguments": model.arguments})}
            save_file(model.weights, temporary, about)
        else:
            torch.save(model.weights, temporary)
    lines = [model.call(checkpoint_path=str(out))]
    if getattr(getattr(subject.backbone, "model", None), "global_pool", "") == "token":
        lines.append("model(images) is the class token; pooled features here are the mean of the patch tokens")
    return lines
