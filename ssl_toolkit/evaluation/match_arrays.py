"""Two views of a few images and their matches as plain arrays, as ``examples/matches.npz`` holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import Image
from ssl_toolkit.data.transforms import as_rgb
from ssl_toolkit.matching import cell_axes, match_tables
from ssl_toolkit.views import ViewBatch


def match_arrays(
    batch: ViewBatch,
    images: Sequence[Image],
    vectors: tuple[Tensor, Tensor],
    grid: tuple[int, int],
    gamma: int,
    *,
    only_mutual: bool = False,
) -> dict[str, NDArray[Any]]:
    """The first two views of each image, and where each cell of the first is matched in the second.

    Args:
        batch: views with values 0 to 255, on the CPU.
        images: that they were cut from, in the same order.
        vectors: ``(B, H * W, D)`` of both views, compared by squared distance, on the CPU.
        grid: H and W, the same for both views.
        gamma: pairs marked as kept, at most the number of cells.
        only_mutual: of the pairs by feature, keep only cells that are each other's nearest.

    Returns:
        Arrays by the names that `ssl_toolkit.reporting.matches.read_matches` reads.
    """
    arrays: dict[str, NDArray[Any]] = {f"seed_{i}": as_rgb(image) for i, image in enumerate(images)}
    for name, view in zip("ab", batch.views):
        arrays[f"view_{name}"] = as_rgb(view.image.permute(0, 2, 3, 1).numpy())
        arrays[f"box_{name}"] = view.box.numpy()
        arrays[f"flip_{name}"] = view.flip.numpy()
    arrays["grid"] = np.array(grid)
    axes = [cell_axes(view.box, *grid, view.flip) for view in batch.views[:2]]
    for name, table in match_tables(axes[0], axes[1], vectors, gamma, only_mutual=only_mutual).items():
        arrays[name], arrays[f"{name}_distance"], arrays[f"{name}_kept"] = (values.numpy() for values in table)
    return arrays
