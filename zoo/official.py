"""Importer of the backbones that the authors of VICReg and VICRegL publish.

Their weights are a bare state dict, or a training checkpoint ``{"epoch", "model", "optimizer"}`` whose
backbone lies under ``module.backbone.``. Tests show that the converted networks compute what the published
code does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.backbones.probe import reason
from ssl_toolkit.errors import UserError, unknown

OFFICIAL_ARCHITECTURES = {
    "resnet50": "resnet50",
    "convnext_small": "vicregl_convnext_small",
    "convnext_base": "vicregl_convnext_base",
    "convnext_xlarge": "vicregl_convnext_xlarge",
}
"""The authors' names to the names of our backbones."""

HEADS = ("projector", "maps_projector", "classifier")
"""Parts of a training checkpoint beside its backbone."""

CONVNEXT_RENAMES = (
    (r"downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"stages\.(\d)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d)\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"stages\.(\d)\.(\d+)\.pwconv1\.", r"stages.\1.blocks.\2.mlp.fc1."),
    (r"stages\.(\d)\.(\d+)\.pwconv2\.", r"stages.\1.blocks.\2.mlp.fc2."),
    (r"norm\.", "norm_pre."),
)
SHOWN = 3


def _renamed(name: str, arch: str) -> str:
    """Our name of an official weight; one that no rule knows keeps its name (and is reported)."""
    if arch.startswith("convnext"):
        for pattern, replacement in CONVNEXT_RENAMES:
            if re.match(pattern, name):
                name = re.sub(f"^{pattern}", replacement, name)
                break
    return f"model.{name}"  # a ResNet's weights have timm's names already


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _convert(state_dict: Mapping[str, Tensor], arch: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename ``state_dict`` and hold it to the names and shapes of ``wanted``."""
    names = {_renamed(name, arch): name for name in state_dict}
    left_over = sorted(official for ours, official in names.items() if ours not in wanted)
    missing = sorted(ours.removeprefix("model.") for ours in wanted if ours not in names)
    if left_over or missing:
        parts = [f"unknown weights {_some(left_over)}"] if left_over else []
        parts += [f"no weights for {_some(missing)}"] if missing else []
        raise UserError(f"not the official {arch}: {'; '.join(parts)}")
    for ours, official in names.items():
        shape, needed = tuple(state_dict[official].shape), tuple(wanted[ours].shape)
        if shape != needed:
            raise UserError(f"not the official {arch}: {official} is {shape}, not {needed}")
    return {ours: state_dict[official] for ours, official in names.items()}


def _our_name(arch: str) -> str:
    if arch not in OFFICIAL_ARCHITECTURES:
        raise unknown("official architecture", arch, OFFICIAL_ARCHITECTURES)
    return OFFICIAL_ARCHITECTURES[arch]


def convert_official(state_dict: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """The official backbone ``state_dict`` under the names of our backbone.

    Args:
        state_dict: a bare backbone state dict (see `load_official` for whole checkpoints).
        arch: one of `OFFICIAL_ARCHITECTURES`.

    Returns:
        A state dict that ``create_backbone(OFFICIAL_ARCHITECTURES[arch])`` loads strictly. Nothing is copied.

    Raises:
        UserError: an unknown ``arch``, or a weight that is left over, missing or of another shape, by name.
    """
    with torch.device("meta"):
        wanted = create_backbone(_our_name(arch)).state_dict()
    return _convert(state_dict, arch, wanted)


def load_official(path: Path, arch: str) -> Backbone:
    """The backbone of an official checkpoint file, in evaluation mode.

    Args:
        path: a ``.pth`` file, either the bare backbone or a whole training checkpoint.
        arch: one of `OFFICIAL_ARCHITECTURES`.

    Raises:
        UserError: the file is missing, cannot be read without running code, or is not that architecture.
    """
    name = _our_name(arch)
    path = Path(path)
    weights = _backbone_weights(path, _read(path))
    backbone = create_backbone(name)
    try:
        backbone.load_state_dict(_convert(weights, arch, backbone.state_dict()))
    except UserError as error:
        raise UserError(f"{path} is {error}") from error
    return backbone.eval()


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: {'it is a folder' if path.is_dir() else 'it does not exist'}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not load as plain tensors ({reason(error)})") from error


def _backbone_weights(path: Path, content: Any) -> dict[str, Tensor]:
    """The backbone's part of what a checkpoint file holds, without prefixes."""
    model = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not all(isinstance(value, Tensor) for value in model.values()):
        raise UserError(f"{path} holds neither a state dict nor a checkpoint with a state dict under 'model'")
    weights = {str(name).removeprefix("module."): value for name, value in model.items()}
    if not any(name.startswith("backbone.") for name in weights):
        return weights
    known = tuple(f"{head}." for head in HEADS)
    return {name.removeprefix("backbone."): value for name, value in weights.items() if not name.startswith(known)}
