"""ADE20K as the scene parsing benchmark has it (Zhou et al. 2017): 150 classes of pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import VOID
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import check_apart, find_images
from ssl_toolkit.data.sets.masks import NO_CLASS, class_mask
from ssl_toolkit.data.sets.published import PublishedConfig, Source, read_lines
from ssl_toolkit.errors import UserError

COUNT = 150
_NAMES = "objectInfo150.txt"


@dataclass
class Ade20kConfig(PublishedConfig):
    """Options of ADE20K: those of every published data set."""


@DATASETS.register("ade20k", Ade20kConfig)
class Ade20k(FileDataset):
    """20,210 training and 2,000 validation images of scenes with masks of 150 classes.

    Splits: train is the publisher's; val and test are both their validation images (the labels of the test images are
    not public). Without ``annotations/`` it is a folder of images to pretrain on.

    Raises:
        UserError: a folder is missing or holds no image, or ``objectInfo150.txt`` does not name the classes.
    """

    def __init__(self, config: Ade20kConfig, split: str) -> None:
        self.name = "ade20k"
        self.config: Ade20kConfig = config
        self.split = split
        root = _source().folder(config.root)
        part = "training" if split == "train" else "validation"
        folder = root / "images" / part
        check_apart(root / "images" / "training", root / "images" / "validation")
        files = find_images(folder) if folder.is_dir() else []
        if not files:
            raise UserError(f"no images in {folder}: unpack ADEChallengeData2016.zip again")
        super().__init__(folder, files)
        self._masks = root / "annotations" / part
        if (root / "annotations").is_dir():
            self.mask_classes = class_names(root / _NAMES)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Pixel classes, ``(H, W)`` uint8: 0 to 149, 255 where the file has 0 (no class of the benchmark).

        Raises:
            UserError: there is no mask for the image, it has another size, or a value without a class.
        """
        if self.mask_classes is None:
            raise NotImplementedError("there is no annotations/")
        table = np.full(256, NO_CLASS, dtype=np.int16)
        table[0] = VOID
        table[1 : COUNT + 1] = np.arange(COUNT)
        path = self._masks / Path(self.relative(index)).with_suffix(".png")
        return class_mask(path, self.path(index), table, f"ADE20K has 1 to {COUNT}, and 0 for no class")


def class_names(path: Path) -> tuple[str, ...]:
    """The first name of each class, from ``objectInfo150.txt`` (a table with the columns Idx and Name); where there is
    no such file, ``class 1`` to ``class 150``.

    Raises:
        UserError: the file does not name each of the classes 1 to 150.
    """
    if not path.is_file():
        return tuple(f"class {number}" for number in range(1, COUNT + 1))
    head, *rows = [re.split(r"\t", line.strip()) for line in read_lines(path) if line.strip()] or [[]]
    titles = [title.strip() for title in head]
    if "Idx" not in titles or "Name" not in titles:
        raise UserError(f"{path} has not the columns Idx and Name, separated by tabs: unpack or remove it")
    where, what = titles.index("Idx"), titles.index("Name")
    names = {row[where].strip(): re.split("[,;]", row[what])[0].strip() for row in rows if len(row) == len(head)}
    missing = next((number for number in range(1, COUNT + 1) if not names.get(str(number))), None)
    if missing is not None:
        raise UserError(f"{path} does not name class {missing}: unpack or remove it")
    return tuple(names[str(number)] for number in range(1, COUNT + 1))


def _source() -> Source:
    return Source(
        title="ADE20K",
        inner="ADEChallengeData2016",
        markers=("images",),
        url="https://groups.csail.mit.edu/vision/datasets/ADE20K/",
    )
