"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their python batches.

The batches are pickles, the one exception to this toolkit's rule that nothing is unpickled: torchvision opens them
only after the MD5 of every file was found to be the published one, and so does this module, which calls torchvision
with that check on. A file with another MD5 is refused unopened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.sets.in_memory import InMemory
from ssl_toolkit.data.sets.published import DownloadConfig, Source, check_fraction, part_of_train
from ssl_toolkit.errors import UserError

_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass
class Cifar10Config(DownloadConfig):
    """Options of CIFAR-10.

    Attributes:
        mean, std: of the pixels of the training images.
        val_fraction: share of the training images held out for val.
    """

    mean: list[float] = field(default_factory=lambda: [0.4914, 0.4822, 0.4465])
    std: list[float] = field(default_factory=lambda: [0.2470, 0.2435, 0.2616])
    eval_resize: int = 32
    eval_size: int = 32
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)


@dataclass
class Cifar100Config(Cifar10Config):
    """Options of CIFAR-100; see `Cifar10Config`."""

    mean: list[float] = field(default_factory=lambda: [0.5071, 0.4865, 0.4409])
    std: list[float] = field(default_factory=lambda: [0.2673, 0.2564, 0.2762])


class _Cifar(InMemory):
    """What both have in common.

    Attributes:
        images: ``(N, 32, 32, 3)`` uint8 RGB.
        label_array: ``(N,)`` int64.
    """

    config: Cifar10Config
    title: str
    kind: str  # of torchvision's class

    def __init__(self, config: Cifar10Config, split: str) -> None:
        self.name = self.kind.lower()
        self.config = config
        self.split = split
        folder = self._source().folder(config.root, config.download)
        data = self._load(folder, split != "test")
        kept = np.arange(len(data.data))
        if split != "test":
            kept = part_of_train([str(i) for i in range(len(data.data))], config.val_fraction, split, folder)
        self.classes = tuple(data.classes)
        self.images = np.ascontiguousarray(data.data[kept])
        self.label_array = np.array(data.targets, dtype=np.int64)[kept]

    @classmethod
    def _torchvision(cls) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, cls.kind)

    def _source(self) -> Source:
        theirs = self._torchvision()
        return Source(
            title=self.title,
            inner=theirs.base_folder,
            markers=(theirs.meta["filename"],),
            url=_URL,
            fetch=lambda place: theirs(str(place), download=True),
        )

    def _load(self, folder: Path, train: bool) -> Any:
        """torchvision's data set, which checks the MD5 of every file before it opens one."""
        theirs = self._torchvision()
        # torchvision knows its folder by name; a subclass lets the user's have another.
        here = type(theirs.__name__, (theirs,), {"base_folder": folder.name})
        try:
            return here(str(folder.parent), train=train)
        except RuntimeError as error:
            raise self._damaged(folder) or UserError(f"cannot read {folder}: {error}") from error

    def _damaged(self, folder: Path) -> UserError | None:
        """Which file is missing or not the published one."""
        from torchvision.datasets.utils import check_integrity

        theirs = self._torchvision()
        expected = [*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])]
        for name, md5 in expected:
            mend = f"remove {folder} and fetch it anew with data.download=true, or unpack {theirs.filename} again"
            if not (folder / name).is_file():
                return UserError(f"no {folder / name}: {mend}")
            if not check_integrity(str(folder / name), md5):
                return UserError(f"{folder / name} is damaged or not the published file (MD5 {md5}): {mend}")
        return None


@DATASETS.register("cifar10", Cifar10Config)
class Cifar10(_Cifar):
    """60,000 images of 32x32 in 10 classes.

    Splits: test is the publisher's 10,000; val is ``val_fraction`` of their 50,000 training images, chosen by a hash
    of the position in file order; train is the rest.

    Raises:
        UserError: the files are not there, or one has another MD5 than the published one.
    """

    title, kind = "CIFAR-10", "CIFAR10"


@DATASETS.register("cifar100", Cifar100Config)
class Cifar100(_Cifar):
    """60,000 images of 32x32 in 100 classes (the fine labels), with the splits of `Cifar10`.

    Raises:
        UserError: the files are not there, or one has another MD5 than the published one.
    """

    title, kind = "CIFAR-100", "CIFAR100"
