"""What shapes a network gives, found without computing and without touching its state."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Backbone
from ssl_toolkit.errors import UserError

M = TypeVar("M", bound=nn.Module)


def shape_twin(module: M) -> M:
    """A copy of ``module`` in evaluation mode whose weights have shapes but no numbers (meta tensors).

    A pass through it costs milliseconds and no memory, and cannot pollute BatchNorm's statistics, as a pass
    of the real network in training mode does.
    """
    weights: dict[int, Tensor] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta")) for value in module.parameters()
    }
    weights.update((id(value), torch.empty_like(value, device="meta")) for value in module.buffers())
    return copy.deepcopy(module, weights).eval()


def reason(error: Exception) -> str:
    """The first line of what ``error`` says, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def map_size(backbone: Backbone, height: int, width: int | None = None) -> tuple[int, int]:
    """``(H, W)`` of the feature maps for an image of ``height`` by ``width`` pixels (square by default).

    Raises:
        UserError: the backbone does not take images of that size.
    """
    width = height if width is None else width
    name = backbone.config.name
    image = torch.empty(1, backbone.config.in_channels, height, width, device="meta")
    try:
        with torch.no_grad():
            maps = shape_twin(backbone)(image).maps
    except Exception as error:  # networks refuse a size by assertions, shape errors and much else
        raise UserError(f"{name} does not take images of {height}x{width} pixels ({reason(error)})") from error
    if 0 in maps.shape:
        raise UserError(f"{name} leaves no feature cells of an image of {height}x{width} pixels; make it larger")
    return int(maps.shape[2]), int(maps.shape[3])
