"""STL-10 (Coates et al. 2011) from its binary files.

They are read from disk as images are asked for. torchvision's class, which only does the downloading here, loads the
2.8 GB of unlabelled images into memory and takes the MD5 of every file for each split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Image, LabelledImages
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.sets.published import DownloadConfig, Source, check_fraction, part_of_train
from ssl_toolkit.errors import UserError

_SIDE = 96
_BYTES = 3 * _SIDE * _SIDE


@dataclass
class Stl10Config(DownloadConfig):
    """Options of STL-10.

    Attributes:
        mean, std: of the pixels of the labelled training images.
        unlabeled: train on the 100,000 unlabelled images and the training images that val does not hold, without
            labels; for pretraining. With false, train is those labelled images alone, which kNN and linear
            evaluation need. val and test do not depend on it.
        val_fraction: share of the 5,000 labelled training images held out for val.
    """

    mean: list[float] = field(default_factory=lambda: [0.4467, 0.4398, 0.4066])
    std: list[float] = field(default_factory=lambda: [0.2603, 0.2566, 0.2713])
    eval_resize: int = 96
    eval_size: int = 96
    unlabeled: bool = False
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)


class RawImages:
    """Images of one binary file, mapped when the first is read; a copy for a worker carries the path, not the pixels.

    In the file each image is three planes (red, green, blue), each column by column.

    Raises:
        UserError: no such file, or it does not hold a whole number of images.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"no {path}: remove its folder and fetch it anew with data.download=true")
        size = path.stat().st_size
        if size == 0 or size % _BYTES:
            raise UserError(f"{path} has {size} bytes, no whole number of images of {_BYTES}: fetch or unpack it again")
        self.path, self.count, self.size = path, size // _BYTES, size
        self._map: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}

    def __getitem__(self, index: int) -> Image:
        """Image ``index``, ``(96, 96, 3)`` uint8."""
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r", shape=(self.count, 3, _SIDE, _SIDE))
        return np.ascontiguousarray(self._map[index].transpose(2, 1, 0))


@DATASETS.register("stl10", Stl10Config)
class Stl10(LabelledImages):
    """113,000 images of 96x96, 13,000 of them labelled, ten classes.

    Splits: test is the publisher's 8,000; val is ``val_fraction`` of their 5,000 labelled training images, chosen by a
    hash of the position in file order; train is the rest of those, behind the 100,000 unlabelled images if
    ``unlabeled`` is set (and then without labels: ``classes`` is None).

    Raises:
        UserError: a file is missing, cut short, or has labels outside 1 to 10.
    """

    def __init__(self, config: Stl10Config, split: str) -> None:
        self.name = "stl10"
        self.config: Stl10Config = config
        self.split = split
        folder = _source().folder(config.root, config.download)
        part = "test" if split == "test" else "train"
        self._images = RawImages(folder / f"{part}_X.bin")
        labels = _read_labels(folder / f"{part}_y.bin", self._images)
        self._rows = np.arange(self._images.count)
        if split != "test":
            names = [str(i) for i in range(self._images.count)]
            self._rows = part_of_train(names, config.val_fraction, split, folder)
        self._unlabeled = RawImages(folder / "unlabeled_X.bin") if config.unlabeled and split == "train" else None
        self.classes = None if self._unlabeled is not None else CLASSES
        self.label_array = None if self.classes is None else labels[self._rows]

    def __len__(self) -> int:
        return len(self._rows) + (self._unlabeled.count if self._unlabeled is not None else 0)

    def image(self, index: int) -> Image:
        if self._unlabeled is not None:
            if index < self._unlabeled.count:
                return self._unlabeled[index]
            index -= self._unlabeled.count
        return self._images[int(self._rows[index])]

    def fingerprint(self) -> str:
        """A hash of the names and sizes of the files and of the chosen images."""
        digest = hashlib.blake2b(self._rows.astype("<i8").tobytes(), digest_size=8)
        for raw in (self._images, self._unlabeled):
            if raw is not None:
                digest.update(f"{raw.path.name}\0{raw.size}\0".encode())
        return digest.hexdigest()


CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
"""In the order of the publisher's ``class_names.txt``."""


def _source() -> Source:
    def fetch(place: Path) -> object:
        import torchvision.datasets

        return torchvision.datasets.STL10(str(place), split="test", download=True)

    return Source(
        title="STL-10",
        inner="stl10_binary",
        markers=("train_X.bin", "test_X.bin"),
        url="https://cs.stanford.edu/~acoates/stl10/",
        fetch=fetch,
    )


def _read_labels(path: Path, images: RawImages) -> NDArray[np.int64]:
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(values) != images.count:
        raise UserError(f"{path} holds {len(values)} labels, {images.path} {images.count} images: unpack them again")
    if values.min() < 1 or values.max() > len(CLASSES):
        wrong = values[(values < 1) | (values > len(CLASSES))][0]
        raise UserError(f"{path} holds the label {wrong}; labels are 1 to {len(CLASSES)}")
    return values.astype(np.int64) - 1
