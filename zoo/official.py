"""The backbones that the authors of VICReg and VICRegL publish, by the names of their own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.errors import unknown
from ssl_toolkit.zoo.importers.convert import convert
from ssl_toolkit.zoo.importers.formats import Parts
from ssl_toolkit.zoo.importers.layouts import OFFICIAL_CONVNEXT_LAYOUT, RESNET_LAYOUT
from ssl_toolkit.zoo.importers.load import load_checkpoint

OFFICIAL_ARCHITECTURES = {
    "resnet50": "resnet50",
    "resnet50x2": "resnet50x2",
    "resnet200x2": "resnet200x2",
    "convnext_small": "vicregl_convnext_small",
    "convnext_base": "vicregl_convnext_base",
    "convnext_xlarge": "vicregl_convnext_xlarge",
}
"""The authors' names to the names of our backbones."""


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
        empty = create_backbone(_our_name(arch))
    layout = OFFICIAL_CONVNEXT_LAYOUT if arch.startswith("convnext") else RESNET_LAYOUT
    parts = Parts("vicregl", "", layout, dict(state_dict), {}, {})
    return convert(parts, empty, f"the official {arch}")[0]


def load_official(path: Path, arch: str) -> Backbone:
    """The backbone of an official checkpoint file, in evaluation mode.

    Args:
        path: a ``.pth`` file, either the bare backbone or a whole training checkpoint.
        arch: one of `OFFICIAL_ARCHITECTURES`.

    Raises:
        UserError: the file is missing, cannot be read without running code, or is not that architecture.
    """
    return load_checkpoint(path, format="vicregl", arch=_our_name(arch)).backbone
