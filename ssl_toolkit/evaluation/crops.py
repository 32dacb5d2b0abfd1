"""Labelled images cropped at random: what classifiers are trained on that see each image anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError, nearest
from ssl_toolkit.evaluation.live import Key, Samples
from ssl_toolkit.evaluation.reading import Preparation
from ssl_toolkit.evaluation.subsets import Labelled
from ssl_toolkit.views.geometry import Window
from ssl_toolkit.views.photometric import Pixels
from ssl_toolkit.views.settings import Settings
from ssl_toolkit.views.spec import ViewGroup, ViewsConfig
from ssl_toolkit.views.torch_engine import ViewDataset

KINDS = ("resized", "random")


@dataclass
class CropConfig:
    """How training images are cut; ``data.eval_size`` is the side of a crop. Colours stay as they are.

    Attributes:
        kind: ``resized`` is torchvision's RandomResizedCrop; ``random`` is a random window of the image whose shorter
            side is ``data.eval_resize``, as evaluation takes the one in the centre.
        scale: range of the share of the image area that a ``resized`` crop covers.
        flip: probability of mirroring left to right.
    """

    kind: str = "resized"
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown crop.kind {self.kind!r}: {nearest(self.kind, KINDS)}")
        self.views(224)  # checks the rest

    def views(self, size: int) -> ViewsConfig:
        """The recipe of one view of ``size`` pixels."""
        group = ViewGroup(
            count=1,
            size=size,
            scale=list(self.scale),
            interpolation="bilinear",
            flip=self.flip,
            jitter=0.0,
            gray=0.0,
            blur=[0.0],
            solarize=[0.0],
        )
        return ViewsConfig("torch", [group])


class WindowDataset(ViewDataset):
    """Views whose windows are squares of ``share`` of the shorter side, anywhere in the image."""

    def __init__(self, images: ImageDataset, config: ViewsConfig, seed: int, share: float) -> None:
        super().__init__(images, config, seed)
        self.share = share

    def _settings(self, key: tuple[int, int], image: Pixels) -> Iterator[Settings]:
        height, width = image.shape[:2]
        side = max(1, round(min(height, width) * self.share))
        for settings, (down, right) in zip(super()._settings(key, image), self._places(key)):
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            yield settings._replace(window=Window(top, left, side, side))

    def _places(self, key: tuple[int, int]) -> Iterator[tuple[float, float]]:
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, key[1], key[0], 2]))
        while True:
            down, right = generator.random(2).tolist()
            yield down, right


class LabelledCrops(Samples[tuple[Tensor, Tensor]]):
    """Random crops of labelled images, with their classes.

    A batch is ``(B, C, size, size)``, uint8 or float32 from 0 to 255, and ``(B,)`` int64.

    Args:
        dataset: the training images.
        chosen: which of them, and their classes.
        crop: how they are cut.
        preparation: how evaluation resizes and crops.
        seed: of all crops.
    """

    def __init__(
        self, dataset: ImageDataset, chosen: Labelled, crop: CropConfig, preparation: Preparation, seed: int
    ) -> None:
        self.rows: NDArray[np.int64] = chosen.rows
        self.labels: NDArray[np.int64] = chosen.labels
        views = crop.views(preparation.size)
        self.views = (
            WindowDataset(dataset, views, seed, preparation.size / preparation.resize)
            if crop.kind == "random"
            else ViewDataset(dataset, views, seed)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        made = self.views.__getitems__([(number, int(self.rows[index])) for number, index in keys])
        if isinstance(made, UserError):
            raise made
        if made.unreadable:
            raise UserError(made.unreadable[0])
        return made.views[0].image, torch.from_numpy(self.labels[[index for _, index in keys]])
