"""Random inputs that suites share."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE = (375.0, 500.0)
"""Height and width of the seed images that boxes are drawn in."""


def random_boxes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Boxes ``(count, 4)`` float64 inside `IMAGE`, each side between the shares ``low`` and ``high`` of the image's.

    Sides are drawn from a continuum, so that no two distances between cells are equal.
    """
    bounds = torch.tensor([IMAGE[1], IMAGE[0]], dtype=torch.float64)
    sides = (low + (high - low) * torch.rand(count, 2, generator=generator, dtype=torch.float64)) * bounds
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (bounds - sides)
    return torch.cat((corner, corner + sides), dim=1)
