"""Statistics and distances are computed in float32 whatever the precision of the network."""

from __future__ import annotations

from torch import Tensor, autocast


def full_precision(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or as it is where it is float32 or float64 already."""
    return tensor if tensor.element_size() >= 4 else tensor.float()


def no_autocast(tensor: Tensor) -> autocast:
    """A context in which operations on ``tensor``'s device keep their inputs' precision."""
    return autocast(device_type=tensor.device.type, enabled=False)
