"""Images as points on a plane, those with similar features near each other."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from ssl_toolkit.errors import UserError

LAYOUTS = {"tsne": "t-SNE", "umap": "UMAP"}
"""What an option calls them, and what their papers do."""


def image_map(
    pooled: Tensor, *, layout: str = "tsne", perplexity: float = 30.0, neighbours: int = 15, seed: int = 0
) -> NDArray[np.float64]:
    """Pooled features of unit length laid out by t-SNE (van der Maaten and Hinton 2008) or by UMAP (McInnes, Healy and
    Melville 2018); the same twice for the same seed.

    Args:
        pooled: ``(n, D)``.
        layout: of `LAYOUTS`.
        perplexity: of t-SNE.
        neighbours: of UMAP, which calls it ``n_neighbors``.

    Returns:
        ``(n, 2)``.

    Raises:
        UserError: too few images, or umap-learn is not installed.
    """
    check_layout(layout)
    needed, key = (perplexity, "perplexity") if layout == "tsne" else (neighbours, "neighbours")
    if len(pooled) <= needed:
        raise UserError(f"{key}={needed:g} needs more than {len(pooled)} images: lower it or raise count")
    unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
    if layout == "umap":
        return _umap(unit, neighbours, seed)
    found: NDArray[np.float64] = TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(unit)
    return found.astype(np.float64)


def check_layout(layout: str) -> None:
    """Refuse a layout whose library is not installed, before any work.

    Raises:
        UserError: saying what to install.
    """
    if layout == "umap" and find_spec("umap") is None:
        raise UserError("layout=umap: umap-learn is not installed; pip install umap-learn, or take layout=tsne")


def _umap(unit: NDArray[np.float32], neighbours: int, seed: int) -> NDArray[np.float64]:
    from umap import UMAP  # takes seconds

    threads = torch.get_num_threads()
    try:
        # One thread: with several, results depend on which is first, whatever the seed.
        found: NDArray[np.float32] = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(unit)
    finally:
        torch.set_num_threads(threads)  # numba sets OpenMP's number to its own, for torch too
    return found.astype(np.float64)
