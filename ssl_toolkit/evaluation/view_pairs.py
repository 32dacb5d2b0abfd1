"""Two random views of each of a set of images, and what a frozen backbone makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.criteria.distributed import rank, world_size
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import Values, evaluating, features_of
from ssl_toolkit.evaluation.protocol import EvalData
from ssl_toolkit.processes import agree
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.views import ViewBatch, ViewDataset, ViewGroup, ViewsConfig
from ssl_toolkit.views.loader import epoch_of, stop_workers, worker_loader

T = TypeVar("T")

UNIT = 32
"""Images of one piece of work. Fixed, so that results depend on neither batch size nor number of processes."""


@dataclass
class PairViews:
    """How the two views of an image are drawn; the defaults are the paper's views for ResNets.

    Attributes:
        size: side of a view in pixels; None is that of evaluated images (``data.eval_size``).
        scale: range of the crop's share of the image area.
        ratio: range of the crop's width / height.
        flip: probability of mirroring a view left to right.
        jitter: probability of colour jitter, with the strengths ``brightness``, ``contrast``, ``saturation``, ``hue``.
        gray: probability of dropping colour.
        blur, solarize: probabilities, one for each of the two views; a single one is both's.
    """

    size: int | None = None
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: list[float] = field(default_factory=lambda: [1.0, 0.1])
    solarize: list[float] = field(default_factory=lambda: [0.0, 0.2])

    def __post_init__(self) -> None:
        self.recipe(self.size or 224)  # its ValueError names what is wrong

    def recipe(self, size: int, photometric: bool = True) -> ViewsConfig:
        """Two large views of ``size`` pixels; without ``photometric`` the same boxes and flips, colours left."""
        given = {key: value for key, value in vars(self).items() if key != "size"}
        group = ViewGroup(count=2, size=size, **given)
        if not photometric:
            group = replace(group, jitter=0.0, gray=0.0, blur=[0.0], solarize=[0.0])
        return ViewsConfig(engine="torch", groups=[group])


def spread(length: int, count: int) -> NDArray[np.int64]:
    """``count`` positions spread evenly over ``length``; all of them where there are fewer."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)


def units(index: Sequence[int] | NDArray[np.int64]) -> list[list[int]]:
    """Stretches of `UNIT` positions; a last one of a single image joins the one before, to have a partner."""
    parts = [list(map(int, index[i : i + UNIT])) for i in range(0, len(index), UNIT)]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [parts[-2] + parts[-1]]
    return parts


def pair_batches(
    data: EvalData, split: str, parts: Sequence[Sequence[int]], recipe: ViewsConfig, seed: int
) -> Iterator[ViewBatch]:
    """The views of each of ``parts``, drawn from (seed, image) alone.

    Raises:
        UserError: an image that cannot be read.
    """
    keys = [[(0, index) for index in part] for part in parts]
    loader = worker_loader(ViewDataset(data.datasets[split], recipe, seed), keys, data.preparation.workers)
    try:
        for batch in epoch_of(loader):
            if isinstance(batch, UserError):
                raise batch
            if batch.unreadable:
                raise UserError(f"{data.datasets[split].name} {split}: {batch.unreadable[0]}")
            yield batch
    finally:
        stop_workers(loader)


def over_units(
    data: EvalData, images: int, recipe: ViewsConfig, seed: int, title: str, work: Callable[[ViewBatch, int], T]
) -> list[T]:
    """What ``work`` makes of the views of each unit of test images and its number, in order, in every process.

    Each process works on every world-th; the backbone is on its device, in evaluation mode.

    Args:
        images: at most, spread evenly over the split.
        title: of the progress bar.

    Raises:
        UserError: of the first process that has one, in all of them.
    """
    parts = units(spread(len(data.datasets["test"]), images))
    first, step = rank(), world_size()
    mine: dict[int, T] = {}

    def work_on_mine() -> None:
        batches = pair_batches(data, "test", parts[first::step], recipe, seed)
        total = sum(map(len, parts[first::step]))
        backbone = data.source.backbone.to(data.device)
        with evaluating(backbone), progress_bar(title, total, "pairs", console=data.console) as bar:
            for number, batch in zip(range(first, len(parts), step), batches):
                mine[number] = work(batch, number)
                bar.advance(len(batch))

    agree(work_on_mine)
    joined: list[Any] = [mine]
    if step > 1:
        joined = [None] * step
        dist.all_gather_object(joined, mine)
    everything = {number: found for part in joined for number, found in part.items()}
    return [everything[number] for number in range(len(parts))]


def pair_features(data: EvalData, batch: ViewBatch, *wanted: str) -> tuple[Values, Values]:
    """`forward` of the first and of the second view of each image."""
    found = forward(data, torch.cat([view.image for view in batch.views]), *wanted)
    halves = {name: value.chunk(2) for name, value in found.items()}
    return {name: half[0] for name, half in halves.items()}, {name: half[1] for name, half in halves.items()}


def forward(data: EvalData, images: Tensor, *wanted: str) -> Values:
    """`features_of` images of values 0 to 255, from a backbone in evaluation mode on its device.

    Raises:
        UserError: features that are not finite.
    """
    given = data.preparation.normalise(images, data.device)
    values = features_of(data.source.backbone, given, wanted, data.precision)
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise UserError(f"{data.source.name} gives nan or infinity: its training diverged, or the weights are damaged")
    return values


def double(x: Tensor) -> Tensor:
    """``x`` in float64, on the CPU where its device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
