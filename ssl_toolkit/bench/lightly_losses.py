"""lightly's losses on our tensors. lightly is no dependency: without it, its columns say how to get it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib import metadata

from torch import Tensor


def version() -> str:
    """Its version, or ``not installed``."""
    try:
        return metadata.version("lightly")
    except metadata.PackageNotFoundError:
        return "not installed"


def missing() -> str:
    """Why its losses cannot be timed here; empty where they can."""
    if importlib.util.find_spec("lightly") is None:
        return "not installed (pip install lightly)"
    try:
        loss = importlib.import_module("lightly.loss").VICRegLLoss
        importlib.import_module("lightly.loss.ntx_ent_loss")
    except Exception as error:  # whatever a package does when imported must not stop a bench of the others
        return f"cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    # Its global and local criteria are not public one by one, only their sum.
    if not (hasattr(loss, "_global_loss") and hasattr(loss, "_local_loss")):
        return f"version {version()} has no VICRegLLoss._global_loss and ._local_loss (1.6.0 has)"
    return ""


def vicreg_global(num_large: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """Its global criterion, of the embeddings ``(N, D)`` of all views, large ones first."""
    criterion = importlib.import_module("lightly.loss").VICRegLLoss()

    def loss(embeddings: Sequence[Tensor]) -> Tensor:
        views = [(e, e) for e in embeddings]  # (global, local) features; only the first are read
        total: Tensor = criterion._global_loss(views[:num_large], views[num_large:] or None)
        return total.sum()  # of one element

    return loss


def vicregl_local(
    points: Sequence[Tensor], sizes: Sequence[tuple[int, int]], num_large: int, gammas: tuple[int, int]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """Its local criterion, of the vectors ``(N, H * W, D)`` of all views, on our cell centres ``(N, H * W, 2)``.

    Its own grids put the last centre outside the crop (1.6.0), so they are not used. Only distances between points
    matter, so the order of their two coordinates does not.
    """
    criterion = importlib.import_module("lightly.loss").VICRegLLoss(num_matches=gammas)
    grids = [_as_map(p, size) for p, size in zip(points, sizes)]

    def loss(vectors: Sequence[Tensor]) -> Tensor:
        maps = [_as_map(v, size) for v, size in zip(vectors, sizes)]
        views = [(m, m) for m in maps]  # (global, local) features; only the second are compared
        total: Tensor = criterion._local_loss(
            views[:num_large], grids[:num_large], views[num_large:] or None, grids[num_large:] or None
        )
        return total.sum()

    return loss


def _as_map(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, H * W, D)`` as ``(N, H, W, D)``."""
    return cells.view(cells.shape[0], *size, cells.shape[2])


def nt_xent(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Its NT-Xent, of pairs ``(N, D)``."""
    criterion: Callable[[Tensor, Tensor], Tensor] = importlib.import_module("lightly.loss").NTXentLoss(temperature)
    return criterion
