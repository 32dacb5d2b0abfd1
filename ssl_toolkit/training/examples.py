"""Views and matches of a few images, saved for pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.transforms import Normalize, as_rgb
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.files import atomic_path
from ssl_toolkit.matching import cell_axes, match_tables
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
    matches are made in the space the method matches in (its local projector), or among the features themselves. The
    views are training views.

    Args:
        path: of the ``.npz``; arrays are described in the reporting package.
        count: images, spread evenly over the data set.
        gamma: pairs marked as kept, at most the number of cells.
    """
    if views.num_large < 2:
        return
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
    batch = ViewDataset(dataset, views, seed).__getitems__([(0, i) for i in indices])
    if not isinstance(batch, ViewBatch):
        raise batch
    a, b = batch.views[0], batch.views[1]
    device = next(method.parameters()).device
    normalize = normalize.to(device)
    with evaluating(method), torch.compiler.set_stance("force_eager"):
        maps = [method.backbone(normalize(view.image.to(device))).maps for view in (a, b)]
        vectors = [method.local_vectors(m).float().cpu() for m in maps]
    height, width = maps[0].shape[2:]
    axes = [cell_axes(view.box, m.shape[2], m.shape[3], view.flip) for view, m in zip((a, b), maps)]
    tables = match_tables(axes[0], axes[1], (vectors[0], vectors[1]), gamma)
    arrays: dict[str, np.ndarray] = {
        f"seed_{i}": as_rgb(dataset.image(index)) for i, index in enumerate(batch.index.tolist())
    }
    for name, view in (("a", a), ("b", b)):
        arrays[f"view_{name}"] = as_rgb(view.image.permute(0, 2, 3, 1).numpy())
        arrays[f"box_{name}"] = view.box.numpy()
        arrays[f"flip_{name}"] = view.flip.numpy()
    arrays["grid"] = np.array([height, width])
    for name, table in tables.items():
        arrays[name], arrays[f"{name}_distance"], arrays[f"{name}_kept"] = (values.numpy() for values in table)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
