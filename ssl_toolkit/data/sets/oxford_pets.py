"""Oxford-IIIT Pet (Parkhi et al. 2012): breeds of cats and dogs, with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import VOID
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.sets.masks import NO_CLASS, class_mask
from ssl_toolkit.data.sets.published import (
    DownloadConfig,
    Source,
    check_fraction,
    check_present,
    part_of_train,
    read_rows,
    whole_numbers,
)
from ssl_toolkit.errors import UserError

_MOST_BREEDS = 37

_TRIMAP = np.full(256, NO_CLASS, dtype=np.int16)
"""Trimap value to pixel class: 1 pet, 2 background, 3 boundary; the rest is no trimap."""
_TRIMAP[[1, 2, 3]] = 1, 0, VOID


@dataclass
class OxfordPetsConfig(DownloadConfig):
    """Options of Oxford-IIIT Pet.

    Attributes:
        val_fraction: share of the publisher's trainval images held out for val.
    """

    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)


@DATASETS.register("oxford_pets", OxfordPetsConfig)
class OxfordPets(FileDataset):
    """7,349 images of 37 breeds, each with a mask of the animal.

    Splits: test is the publisher's (3,669 images); val is ``val_fraction`` of their trainval (3,680 images), chosen by
    a hash of the names; train is the rest.

    Raises:
        UserError: a file is missing, or a list or its labels are not as published.
    """

    mask_classes = ("background", "pet")

    def __init__(self, config: OxfordPetsConfig, split: str) -> None:
        self.name = "oxford_pets"
        self.config: OxfordPetsConfig = config
        self.split = split
        root = _source().folder(config.root, config.download)
        self._trimaps = root / "annotations" / "trimaps"
        names, labels, classes = read_list(root / "annotations" / "trainval.txt")
        if "" in classes:
            raise UserError(f"{root / 'annotations' / 'trainval.txt'} has no image of breed {classes.index('') + 1}")
        source = root / "annotations" / ("test.txt" if split == "test" else "trainval.txt")
        if split == "test":
            names, labels, others = read_list(source)
            if any(classes[label : label + 1] != (name,) for label, name in enumerate(others) if name):
                raise UserError(f"{source} and trainval.txt number breeds differently: unpack annotations.tar.gz again")
        else:
            kept = part_of_train(names, config.val_fraction, split, source)
            names, labels = [names[i] for i in kept], labels[kept]
        files = [f"{name}.jpg" for name in names]
        check_present(root / "images", files, source)
        super().__init__(root / "images", files, classes=classes, labels=labels)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """``(H, W)`` uint8: 0 background, 1 pet, 255 on the boundary, which the publisher calls not classified.

        Raises:
            UserError: there is no mask, it has another size than its image, or values other than 1 to 3.
        """
        image = self.path(index)
        return class_mask(self._trimaps / f"{image.stem}.png", image, _TRIMAP, "a trimap has 1, 2 and 3")


def read_list(path: Path) -> tuple[list[str], NDArray[np.int64], tuple[str, ...]]:
    """Image names, labels from 0, and the names of the breeds, from lines such as ``Abyssinian_100 1 1 1``.

    Raises:
        UserError: the file cannot be read, a label is out of range, or a number stands for two breeds.
    """
    rows = read_rows(path, 4)
    names = [row[0] for row in rows]
    labels = whole_numbers([row[1] for row in rows], path, 1, _MOST_BREEDS) - 1
    return names, labels, _breeds(names, labels, path)


def _breeds(names: Sequence[str], labels: NDArray[np.int64], path: Path) -> tuple[str, ...]:
    """``american_bulldog_12`` is an American Bulldog; a number that no image has gets an empty name."""
    breeds = [""] * int(labels.max() + 1)
    for name, label in zip(names, labels):
        breed = name.rpartition("_")[0].replace("_", " ").title()
        if breeds[label] not in ("", breed):
            raise UserError(f"{path} has the number {label + 1} for both {breeds[label]} and {breed}")
        breeds[label] = breed
    return tuple(breeds)


def _source() -> Source:
    def fetch(place: Path) -> object:
        import torchvision.datasets

        return torchvision.datasets.OxfordIIITPet(str(place), download=True)

    return Source(
        title="Oxford-IIIT Pet",
        inner="oxford-iiit-pet",
        markers=("images", "annotations"),
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        fetch=fetch,
    )
