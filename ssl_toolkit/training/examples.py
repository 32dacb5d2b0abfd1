"""Views and matches of a few images, saved for pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.evaluation.match_arrays import match_arrays
from ssl_toolkit.files import atomic_path
from ssl_toolkit.methods.base import Method
from ssl_toolkit.views import EpochBatches, ViewBatch, ViewDataset, ViewsConfig
from ssl_toolkit.views.sheet import save_sheet


def save_view_examples(
    path: Path, dataset: ImageDataset, views: ViewsConfig, *, seed: int, batch_size: int, count: int = 4
) -> None:
    """A sheet of the first images of the first step: each image with its crop boxes, and its views.

    Args:
        path: of the PNG.
        seed, batch_size: of the run, which say what the first step is.
        count: images.
    """
    first = next(iter(EpochBatches(len(dataset), batch_size, seed)))
    batch = ViewDataset(dataset, views, seed).__getitems__(first[:count])
    if not isinstance(batch, ViewBatch):
        raise batch
    images = [dataset.image(index) for index in batch.index.tolist()]
    save_sheet(path, images, batch, header=[group.describe(dataset.in_channels) for group in views.groups])


@torch.no_grad()
def save_match_examples(
    path: Path,
    method: Method,
    dataset: ImageDataset,
    views: ViewsConfig,
    normalize: Normalize,
    *,
    seed: int,
    count: int = 6,
    gamma: int = 10,
) -> None:
    """Write where each cell of one large view is matched in the other, by location and by feature.

    The method computes where it is, in evaluation mode; it is left as it was, and so are random generators. Feature
    matches are those the method makes (`Method.feature_search`). The views are training views.

    Args:
        path: of the ``.npz``; arrays are those of `match_arrays`.
        count: images, spread evenly over the data set.
        gamma: pairs marked as kept, at most the number of cells.
    """
    if views.num_large < 2:
        return
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
    batch = ViewDataset(dataset, views, seed).__getitems__([(0, i) for i in indices])
    if not isinstance(batch, ViewBatch):
        raise batch
    device = next(method.parameters()).device
    normalize = normalize.to(device)
    search = method.feature_search
    with evaluating(method), torch.compiler.set_stance("force_eager"):
        maps = [method.backbone(normalize(view.image.to(device))).maps for view in batch.views[:2]]
        vectors = [search.vectors(m).float().cpu() for m in maps]
    height, width = maps[0].shape[2:]
    images = [dataset.image(index) for index in batch.index.tolist()]
    arrays = match_arrays(
        batch, images, (vectors[0], vectors[1]), (height, width), gamma, only_mutual=search.only_mutual
    )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
