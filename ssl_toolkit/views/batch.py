"""What the view engines hand to training: views with their crop boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One view of every image of a batch.

    Attributes:
        image: ``(B, C, S, S)``; as it leaves the loader uint8, or float32 from 0 to 255 for data of 16 bits; then
            normalised floating point.
        box: ``(B, 4)`` float32, ``x0, y0, x1, y1`` in pixels of the seed image, half open.
        flip: ``(B,)`` bool, whether the crop was mirrored left to right.
    """

    image: Tensor
    box: Tensor
    flip: Tensor

    def map(self, fn: Callable[[Tensor], Tensor]) -> View:
        """The view with ``fn`` applied to each tensor."""
        return View(fn(self.image), fn(self.box), fn(self.flip))


@dataclass(frozen=True)
class ViewBatch:
    """All views of a batch of seed images, the large ones first.

    Attributes:
        views: one `View` per position.
        num_large: how many of ``views`` are large; the rest are small.
        image_size: ``(B, 2)`` float32, height and width of each seed image in pixels.
        index: ``(B,)`` int64, position of each image in its data set.
        label: ``(B,)`` int64 or None. For probes only: no method reads it.
        unreadable: what was wrong with each image that was drawn and could not be read; others took their places.
    """

    views: tuple[View, ...]
    num_large: int
    image_size: Tensor
    index: Tensor
    label: Tensor | None = None
    unreadable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_large <= len(self.views):
            raise ValueError(f"num_large is {self.num_large} with {len(self.views)} views")

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def map(self, fn: Callable[[Tensor], Tensor]) -> ViewBatch:
        """The batch with ``fn`` applied to each tensor."""
        label = None if self.label is None else fn(self.label)
        views = tuple(view.map(fn) for view in self.views)
        return ViewBatch(views, self.num_large, fn(self.image_size), fn(self.index), label, self.unreadable)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """The batch on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        return self.map(Tensor.pin_memory)

    def with_images(self, fn: Callable[[Tensor], Tensor]) -> ViewBatch:
        """The batch with ``fn`` applied to the images alone (normalisation)."""
        return replace(self, views=tuple(replace(view, image=fn(view.image)) for view in self.views))
