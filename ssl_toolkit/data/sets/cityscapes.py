"""Cityscapes (Cordts et al. 2016): streets, with masks of 19 classes of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import VOID
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import check_apart, find_images
from ssl_toolkit.data.sets.masks import NO_CLASS, class_mask
from ssl_toolkit.data.sets.published import PublishedConfig, Source
from ssl_toolkit.errors import UserError

_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


@dataclass
class CityscapesConfig(PublishedConfig):
    """Options of Cityscapes: those of every published data set."""


@DATASETS.register("cityscapes", CityscapesConfig)
class Cityscapes(FileDataset):
    """2,975 training and 500 validation images with fine masks, the 19 classes that are evaluated.

    Splits: train is the publisher's; val and test are both their val (the labels of their test are not public).
    Without ``gtFine/`` it is a folder of images to pretrain on.

    Raises:
        UserError: a folder is missing or holds no image.
    """

    def __init__(self, config: CityscapesConfig, split: str) -> None:
        self.name = "cityscapes"
        self.config: CityscapesConfig = config
        self.split = split
        self.root = _source().folder(config.root)
        self._part = "train" if split == "train" else "val"
        folder = self.root / "leftImg8bit" / self._part
        check_apart(self.root / "leftImg8bit" / "train", self.root / "leftImg8bit" / "val")
        files = [name for name in find_images(folder) if name.endswith(_IMAGE)] if folder.is_dir() else []
        if not files:
            raise UserError(f"no images *{_IMAGE} in {folder}: unpack leftImg8bit_trainvaltest.zip again")
        super().__init__(folder, files)
        if (self.root / "gtFine").is_dir():
            self.mask_classes, self._table = label_table()

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Pixel classes, ``(H, W)`` uint8: the 19 train ids, 255 for every other label.

        Raises:
            UserError: there is no mask for the image, it has another size, or a value that is no label.
        """
        if self.mask_classes is None:
            raise NotImplementedError("there is no gtFine/")
        path = self.root / "gtFine" / self._part / (self.relative(index).removesuffix(_IMAGE) + _MASK)
        return class_mask(path, self.path(index), self._table, "the labels of Cityscapes are 0 to 33")


def label_table() -> tuple[tuple[str, ...], NDArray[np.int16]]:
    """The names of the 19 classes, and the class of each label, from torchvision."""
    from torchvision.datasets import Cityscapes as Theirs

    table = np.full(256, NO_CLASS, dtype=np.int16)
    for entry in Theirs.classes:
        table[entry.id % 256] = VOID if entry.ignore_in_eval else entry.train_id  # -1 is stored as 255
    kept = sorted((entry.train_id, entry.name) for entry in Theirs.classes if not entry.ignore_in_eval)
    return tuple(name for _, name in kept), table


def _source() -> Source:
    return Source(
        title="Cityscapes",
        inner="cityscapes",
        markers=("leftImg8bit",),
        url="https://www.cityscapes-dataset.com/",
    )
