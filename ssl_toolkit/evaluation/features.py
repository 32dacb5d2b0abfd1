"""Features of a whole split from a frozen backbone, extracted once for every protocol.

Here they are held in memory; `ssl_toolkit.evaluation.extraction` keeps them on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone, Features
from ssl_toolkit.data.base import VOID as VOID
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.reading import Preparation as Preparation
from ssl_toolkit.evaluation.reading import Rows, read_batches, read_labels
from ssl_toolkit.evaluation.reading import eval_images as eval_images
from ssl_toolkit.progress import Bar, progress_bar

POOLED, MAPS, STAGES, MASKS = "pooled", "maps", "stages", "masks"
"""What a `FeatureBank` can hold."""


@dataclass(frozen=True)
class FeatureBank:
    """Features of one split, in the order of its images, on the CPU: in memory, or read from files when touched.

    Attributes:
        pooled: ``(N, D)`` float32.
        maps: ``(N, C, H, W)`` in the precision of the forward pass, or None if not asked for.
        labels: ``(N,)`` int64, or None where the data set has none.
        masks: ``(N, S, S)`` uint8, `VOID` where not scored, or None if not asked for.
        stages: the pyramid from fine to coarse, each ``(N, C_i, H_i, W_i)`` like ``maps``, or None if not asked for.
    """

    pooled: Tensor
    maps: Tensor | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.pooled)


@dataclass(frozen=True)
class Part:
    """One tensor of a bank.

    Attributes:
        name: of `FeatureBank`; ``stages`` are ``stages0``, ``stages1``, ...
        shape, dtype: of what it holds of an image.
        variant: tells it from others of this name for the same images, on disk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    variant: str = ""

    @property
    def stored(self) -> str:
        """Name of its file."""
        return self.name + self.variant

    @property
    def bytes_per_image(self) -> int:
        """Size of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


Values = Mapping[str, Tensor]
"""Tensors by the names of their parts, one row for each image of a batch."""


def parts_of(
    backbone: Backbone,
    preparation: Preparation,
    wanted: Collection[str],
    *,
    device: torch.device,
    precision: torch.dtype,
) -> list[Part]:
    """What a bank with ``wanted``, of `POOLED` (always there), `MAPS`, `STAGES` and `MASKS`, is made of.

    Found by a pass of one image of zeros through ``backbone``, which must be in evaluation mode on ``device``.
    """
    image = torch.zeros(1, backbone.config.in_channels, preparation.size, preparation.size, device=device)
    values = features_of(backbone, image, {POOLED, *wanted}, precision)
    parts = [Part(name, tuple(value.shape[1:]), value.dtype) for name, value in values.items()]
    if MASKS in wanted:
        parts.append(Part(MASKS, (preparation.size, preparation.size), torch.uint8))
    return parts


def features_of(backbone: Backbone, images: Tensor, wanted: Collection[str], precision: torch.dtype) -> Values:
    """Pooled vectors in float32; maps and stages in the precision of the forward pass; by the names of their parts."""
    features, pyramid = _forward(backbone, images, precision, STAGES in wanted)
    stored = torch.bfloat16 if features.maps.dtype == torch.bfloat16 else torch.float32
    values = {POOLED: features.pooled.float()}
    if MAPS in wanted:
        values[MAPS] = features.maps.to(stored)
    return values | {f"{STAGES}{i}": level.to(stored) for i, level in enumerate(pyramid or ())}


def bank_of(tensors: Values, labels: Tensor | None) -> FeatureBank:
    """A bank of tensors by the names of their parts."""
    levels = [tensors[f"{STAGES}{i}"] for i in range(sum(name.startswith(STAGES) for name in tensors))]
    return FeatureBank(
        tensors[POOLED], tensors.get(MAPS), labels, tensors.get(MASKS), tuple(levels) if levels else None
    )


def split_batches(length: int, batch_size: int) -> list[Rows]:
    """The images of a split in batches, in order."""
    return np.split(np.arange(length), range(batch_size, length, batch_size)) if length else []


def compute(
    backbone: Backbone,
    dataset: ImageDataset,
    batches: Sequence[Rows],
    preparation: Preparation,
    names: Collection[str],
    put: Callable[[Rows, Values], None],
    bar: Bar,
    *,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Hand the parts ``names`` of each batch to ``put``, on the CPU; ``backbone`` must be in evaluation mode.

    Raises:
        UserError: images or masks that cannot be read, or features that are not finite.
    """
    wanted = {STAGES if name.startswith(STAGES) else name for name in names}
    read = read_batches(dataset, batches, preparation, masks=MASKS in wanted, device=device)
    for rows, (images, masks) in zip(batches, read):
        values: dict[str, Tensor] = {} if masks is None else {MASKS: masks}
        if wanted - {MASKS}:
            found = features_of(backbone, preparation.normalise(images, device), wanted, precision)
            _require_finite(found[POOLED], rows, dataset)
            values |= {name: value.cpu() for name, value in found.items() if name in names}
        put(rows, values)
        bar.advance(len(rows))


def extract(
    backbone: Backbone,
    dataset: ImageDataset,
    preparation: Preparation,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    maps: bool = False,
    masks: bool = False,
    stages: bool = False,
    console: Console | None = None,
) -> FeatureBank:
    """Features of every image of ``dataset``, in memory, computed by this process alone.

    The backbone is moved to ``device`` and runs in evaluation mode; its weights, its BatchNorm
    statistics and the mode of each of its modules are as before when this returns.

    Args:
        precision: ``torch.bfloat16`` runs the forward pass in autocast, ``torch.float32`` does not.
        maps: also keep the last feature maps.
        masks: also keep the masks, cut like the images.
        stages: also keep the pyramid.
        console: where progress is shown.

    Raises:
        UserError: an empty split, labels or mask values outside the classes, a mask of another size than
            its image, or features that are not finite.
    """
    require_images(dataset)
    labels = read_labels(dataset)
    wanted = {name for name, kept in ((MAPS, maps), (MASKS, masks), (STAGES, stages)) if kept}
    backbone = backbone.to(device)
    title = f"features of {dataset.name} {dataset.split}"
    with evaluating(backbone), progress_bar(title, len(dataset), console=console) as bar:
        parts = parts_of(backbone, preparation, wanted, device=device, precision=precision)
        tensors = allocate(parts, len(dataset))
        batches = split_batches(len(dataset), preparation.batch_size)
        put = rows_into(tensors)
        compute(backbone, dataset, batches, preparation, tensors, put, bar, device=device, precision=precision)
    return bank_of(tensors, labels)


def allocate(parts: Sequence[Part], length: int) -> dict[str, Tensor]:
    """Memory for ``length`` images: plain tensors, as what inference mode makes cannot be used in training a head."""
    return {part.name: torch.empty(length, *part.shape, dtype=part.dtype) for part in parts}


def rows_into(tensors: Values) -> Callable[[Rows, Values], None]:
    """A ``put`` for `compute` that fills ``tensors``."""

    def put(rows: Rows, values: Values) -> None:
        for name, value in values.items():
            tensors[name][rows[0] : rows[-1] + 1] = value

    return put


def require_images(dataset: ImageDataset) -> None:
    """`UserError` for an empty split."""
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: its {dataset.split} split has no images")


def calibrate_batchnorm(
    backbone: Backbone,
    dataset: ImageDataset,
    preparation: Preparation,
    *,
    device: torch.device,
    images: int = 2048,
    seed: int = 0,
) -> int:
    """Fill the running statistics of every BatchNorm of an untrained backbone: the fair untrained baseline.

    The statistics become the average over batches of up to ``images`` images, drawn by ``seed``, and replace
    what was there. Modes and momenta are as before when this returns.

    Returns:
        How many BatchNorm layers there were; 0 does no work.

    Raises:
        UserError: fewer than two images to take statistics of.
    """
    norms = [
        module
        for module in backbone.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    size = min(preparation.batch_size, len(dataset))
    if size < 2:
        raise UserError(f"BatchNorm statistics need batches of 2 images or more, not {size}: raise batch_size")
    # Whole batches only: each counts the same in the average.
    order = np.random.default_rng(seed).permutation(len(dataset))
    order = order[: max(min(images, len(dataset)) // size, 1) * size]
    batches = np.split(order, range(size, len(order), size))
    momenta = [norm.momentum for norm in norms]
    backbone = backbone.to(device)
    with evaluating(backbone), progress_bar("BatchNorm statistics", len(order)) as bar:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        try:
            for batch, _ in read_batches(dataset, batches, preparation, masks=False, device=device):
                _forward(backbone, preparation.normalise(batch, device), torch.float32)
                bar.advance(len(batch))
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
    return len(norms)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; then each submodule gets back the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _forward(
    backbone: Backbone, images: Tensor, precision: torch.dtype, stages: bool = False
) -> tuple[Features, list[Tensor] | None]:
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    with torch.inference_mode(), autocast:
        return backbone.forward_stages(images) if stages else (backbone(images), None)


def _require_finite(pooled: Tensor, rows: Rows, dataset: ImageDataset) -> None:
    wrong = int((~pooled.isfinite().all(1)).sum())
    if wrong:
        raise UserError(
            f"the backbone gives nan or infinity for {wrong} of {len(rows)} images of {dataset.name} {dataset.split} "
            f"(from image {rows[0]} on): its training diverged, or the weights are damaged"
        )
