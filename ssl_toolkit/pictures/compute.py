"""Arrays behind the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data.base import DataConfig, Image, LabelledImages
from ssl_toolkit.data.transforms import Normalize, as_rgb, eval_batch
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.evaluation.match_arrays import match_arrays
from ssl_toolkit.reporting.matches import MatchExample, examples_of
from ssl_toolkit.views import ViewBatch, ViewDataset, ViewGroup, ViewsConfig

CLIP = (1.0, 99.0)
"""Percentiles of a component between which its colour runs: a few outlying cells must not wash out the rest."""

BATCH = 64

Embed = Callable[[Tensor], Tensor]
"""Feature maps ``(n, C, H, W)`` to a vector for each cell, ``(n, H * W, D)``."""


def features_themselves(maps: Tensor) -> Tensor:
    """The `Embed` that changes nothing."""
    return maps.flatten(2).mT


@dataclass(frozen=True)
class Seen:
    """Images, and what a backbone makes of them.

    Attributes:
        images: ``(n, S, S, 3)`` uint8, the square that the network was shown.
        maps: ``(n, C, H, W)`` float32; of embeddings where they were asked for.
        pooled: ``(n, D)`` float32.
    """

    images: NDArray[np.uint8]
    maps: Tensor
    pooled: Tensor


def see(
    backbone: Backbone,
    images: Sequence[Image],
    normalize: Normalize,
    *,
    size: int,
    device: torch.device,
    stage: int | None = None,
    maps: bool = True,
    embed: Embed = features_themselves,
) -> Seen:
    """Features of images whose shorter side is ``size`` and whose centre is cut to a square, in float32.

    Args:
        images: each ``(H, W, C)``.
        stage: which map of the pyramid, None for the last map.
        maps: False keeps pooled vectors alone, for many images.
        embed: what the maps are of; by default features.

    Raises:
        UserError: there is no such stage.
    """
    count = len(backbone.stage_channels)
    if stage is not None and not 0 <= stage < count:
        raise UserError(f"stage={stage}: {backbone.config.name} has stages 0 to {count - 1}")
    backbone, normalize = backbone.to(device), normalize.to(device)
    shown, found, pooled = [], [], []
    with evaluating(backbone), torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = eval_batch(images[start : start + BATCH], size, size)
            given = normalize(batch.to(device))
            shown.append(as_rgb(batch.permute(0, 2, 3, 1).numpy()))
            features, stages = (backbone(given), []) if stage is None else backbone.forward_stages(given)
            pooled.append(features.pooled.float().cpu())
            if maps:
                chosen = features.maps if stage is None else stages[stage]
                found.append(embed(chosen).mT.reshape(len(chosen), -1, *chosen.shape[2:]).float().cpu())
    return Seen(np.concatenate(shown), torch.cat(found) if maps else torch.empty(0), torch.cat(pooled))


def pca_colours(maps: Tensor) -> NDArray[np.float64]:
    """The three directions in which the cells of all images differ most, as red, green and blue.

    Components are found over all cells together, so that a colour means the same in every image. Each is turned so that
    its largest loading is positive, and runs from `CLIP`'s lower to its upper percentile.

    Args:
        maps: ``(n, C, H, W)``.

    Returns:
        ``(n, H, W, 3)`` from 0 to 1; with fewer than three components the rest is 0.5.
    """
    n, channels, height, width = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(-1, channels).double()
    cells = cells - cells.mean(0)
    _, values, directions = torch.linalg.svd(cells.T @ cells)
    kept = directions[: min(3, channels)]
    kept = kept * kept.gather(1, kept.abs().argmax(1, keepdim=True)).sign()
    colours = torch.full((len(cells), 3), 0.5, dtype=torch.float64)
    for i, direction in enumerate(kept):
        if values[i] > 1e-12 * values[0].clamp_min(1e-300):
            component = cells @ direction
            low, high = np.percentile(component.numpy(), CLIP)
            colours[:, i] = ((component - low) / max(high - low, 1e-12)).clamp(0, 1)
    result: NDArray[np.float64] = colours.reshape(n, height, width, 3).numpy()
    return result


def similarity(maps: Tensor, image: int, point: Sequence[float]) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Cosine similarity of every cell of every image to one cell.

    Args:
        maps: ``(n, C, H, W)``.
        point: shares of the width and the height of ``image``, from its top left corner.

    Returns:
        ``(n, H, W)`` from -1 to 1, and the cell as (row, column).

    Raises:
        UserError: a point outside the image.
    """
    if len(point) != 2 or not all(0 <= p <= 1 for p in point):
        raise UserError(f"point={list(point)} must be two shares from 0 to 1, of the width and of the height")
    height, width = maps.shape[2:]
    row, column = min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1)
    cells = torch.nn.functional.normalize(maps.double(), dim=1)
    found: NDArray[np.float64] = torch.einsum("nchw,c->nhw", cells, cells[image, :, row, column]).numpy()
    return found, (row, column)


class Chosen(LabelledImages):
    """A few images in memory, as a data set that views are made of."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.name, self.split, self.config = "chosen", "test", DataConfig()
        self._images, self.in_channels = list(images), images[0].shape[2]

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image:
        return self._images[index]

    def fingerprint(self) -> str:
        raise NotImplementedError("a few images of another data set")


def match_examples(
    backbone: Backbone,
    images: Sequence[Image],
    normalize: Normalize,
    *,
    size: int,
    scale: Sequence[float],
    gamma: int,
    seed: int,
    device: torch.device,
    embed: Embed = features_themselves,
    only_mutual: bool = False,
) -> list[MatchExample]:
    """Two random crops of each image, mirrored half of the time, and how their cells match.

    By location, and by feature: the nearest vector of the other view in squared distance. Colours are left as they
    are. Views are drawn from (seed, position of the image).

    Args:
        size: side of a view in pixels.
        scale: range of a crop's share of the image area.
        gamma: pairs marked as kept, at most the number of cells.
        embed: of the last map, what is compared; by default features.
        only_mutual: of the pairs by feature, keep only cells that are each other's nearest.
    """
    group = ViewGroup(size=size, scale=list(scale), jitter=0.0, gray=0.0, blur=[0.0], solarize=[0.0])
    batch = ViewDataset(Chosen(images), ViewsConfig("torch", [group]), seed).__getitems__(
        [(0, i) for i in range(len(images))]
    )
    if not isinstance(batch, ViewBatch):
        raise batch
    backbone, normalize = backbone.to(device), normalize.to(device)
    with evaluating(backbone), torch.inference_mode():
        maps = [backbone(normalize(view.image.to(device))).maps for view in batch.views]
        vectors = [embed(m).float().cpu() for m in maps]
    height, width = maps[0].shape[2:]
    pair = (vectors[0], vectors[1])
    return examples_of(match_arrays(batch, images, pair, (height, width), gamma, only_mutual=only_mutual))
