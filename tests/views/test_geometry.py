"""Crop windows against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from ssl_toolkit.views.geometry import DRAWS, random_window


def test_windows_are_distributed_as_torchvisions() -> None:
    numbers = np.random.default_rng(0).random((4000, DRAWS))
    torch.manual_seed(0)
    image = torch.zeros(3, 375, 500)
    scale, ratio = [0.08, 1.0], [0.75, 1.3333]
    ours = np.array([random_window(u, 375, 500, scale, ratio) for u in numbers])
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.arange(501)
        gap = np.abs(np.searchsorted(a, grid, side="right") - np.searchsorted(b, grid, side="right")) / len(a)
        assert gap.max() < 0.044  # Kolmogorov-Smirnov at about one in a thousand


@pytest.mark.parametrize("ratio", [[3.0, 4.0], [0.2, 0.3]])
def test_a_window_has_at_least_a_pixel(ratio: list[float]) -> None:
    assert random_window([0.5] * DRAWS, 1, 1, [1.0, 1.0], ratio) == (0, 0, 1, 1)


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (50, 50)])
def test_a_window_that_never_fits_falls_back_to_the_centre(height: int, width: int) -> None:
    scale, ratio = [1.0, 1.0], [1.1, 1.2]
    window = random_window(np.random.default_rng(0).random(DRAWS), height, width, scale, ratio)
    assert window == RandomResizedCrop.get_params(torch.zeros(3, height, width), scale, ratio)
