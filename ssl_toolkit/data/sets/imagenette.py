"""Imagenette (Howard 2019): ten easily told classes of ImageNet, in three sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import check_apart
from ssl_toolkit.data.sets.imagenet import class_folders, files_by_class, labels_of
from ssl_toolkit.data.sets.published import DownloadConfig, Source, check_fraction, part_of_train
from ssl_toolkit.errors import nearest

_INNER = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}

_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


@dataclass
class ImagenetteConfig(DownloadConfig):
    """Options of Imagenette.

    Attributes:
        size: ``full``, or shrunk so that the shorter side is ``320px`` or ``160px``.
        val_fraction: share of the publisher's training images held out for val.
    """

    size: str = "320px"
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in _INNER:
            raise ValueError(f"unknown size {self.size!r}: {nearest(self.size, _INNER)}")
        check_fraction(self.val_fraction)


@DATASETS.register("imagenette", ImagenetteConfig)
class Imagenette(FileDataset):
    """13,394 images of ten classes (version 2).

    Splits: test is the publisher's ``val`` (3,925 images); val is ``val_fraction`` of their ``train`` (9,469 images),
    chosen by a hash of the names; train is the rest.

    Raises:
        UserError: the files are not there, or not sorted by class.
    """

    def __init__(self, config: ImagenetteConfig, split: str) -> None:
        self.name = "imagenette"
        self.config: ImagenetteConfig = config
        self.split = split
        root = _source(config.size).folder(config.root, config.download)
        check_apart(root / "train", root / "val")
        wnids = class_folders(root / "train")
        folder, present = root / "train", wnids
        if split == "test":
            folder = root / "val"
            present = class_folders(folder, known=wnids)
        files = files_by_class(folder, present)
        if split != "test":
            files = [files[i] for i in part_of_train(files, config.val_fraction, split, folder)]
        names = tuple(_NAMES.get(wnid, wnid) for wnid in wnids)
        super().__init__(folder, files, classes=names, labels=labels_of(files, wnids))


def _source(size: str) -> Source:
    def fetch(place: Path) -> object:
        import torchvision.datasets

        return torchvision.datasets.Imagenette(str(place), size=size, download=True)

    return Source(
        title=f"Imagenette ({size})",
        inner=_INNER[size],
        markers=("train", "val"),
        url="https://github.com/fastai/imagenette",
        fetch=fetch,
    )
