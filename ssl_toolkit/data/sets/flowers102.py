"""Oxford Flowers-102 (Nilsback and Zisserman 2008)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.sets.published import DownloadConfig, Source, check_present
from ssl_toolkit.errors import UserError

_PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}
_LABELS, _SPLITS = "imagelabels.mat", "setid.mat"


@dataclass
class Flowers102Config(DownloadConfig):
    """Options of Flowers-102."""


@DATASETS.register("flowers102", Flowers102Config)
class Flowers102(FileDataset):
    """8,189 images of 102 kinds of flowers.

    Splits: the publisher's own, 1,020 train, 1,020 val (10 of each class) and 6,149 test.

    Raises:
        UserError: a file is missing or damaged, or the labels do not fit the images.
    """

    def __init__(self, config: Flowers102Config, split: str) -> None:
        from torchvision.datasets import Flowers102 as Theirs

        self.name = "flowers102"
        self.config: Flowers102Config = config
        self.split = split
        folder = _source().folder(config.root, config.download)
        classes = tuple(Theirs.classes)
        labels = read_mat(folder / _LABELS, "labels")
        ids = read_mat(folder / _SPLITS, _PARTS[split])
        if labels.min() < 1 or labels.max() > len(classes):
            raise UserError(f"{folder / _LABELS} holds labels from {labels.min()} to {labels.max()}, not 1 to 102")
        if ids.min() < 1 or ids.max() > len(labels):
            raise UserError(
                f"{folder / _SPLITS} names the images {ids.min()} to {ids.max()}, "
                f"{_LABELS} has labels of 1 to {len(labels)}: unpack both again"
            )
        files = [f"image_{number:05d}.jpg" for number in ids.tolist()]
        check_present(folder / "jpg", files, folder / _SPLITS)
        super().__init__(folder / "jpg", files, classes=classes, labels=labels[ids - 1] - 1)


def read_mat(path: Path, key: str) -> NDArray[np.int64]:
    """The array ``key`` of a MATLAB file, flat, as integers.

    Raises:
        UserError: the file cannot be read, or has no such array of integers.
    """
    from scipy.io import loadmat

    try:
        values = np.asarray(loadmat(path)[key]).ravel()
    except KeyError as error:
        raise UserError(f"{path} has no array {key!r}: it is not the published file") from error
    except Exception as error:  # scipy raises whatever damaged bytes lead it to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read {path} ({reason}): fetch it again") from error
    if values.dtype.kind not in "iu" or len(values) == 0:
        raise UserError(f"{path}: {key!r} holds {len(values)} values of type {values.dtype}, not integers")
    return values.astype(np.int64)


def _source() -> Source:
    def fetch(place: Path) -> object:
        import torchvision.datasets

        return torchvision.datasets.Flowers102(str(place), download=True)

    return Source(
        title="Flowers-102",
        inner="flowers-102",
        markers=("jpg", _LABELS, _SPLITS),
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        fetch=fetch,
    )
