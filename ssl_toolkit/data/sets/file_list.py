"""Images named by list files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import SPLITS
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileConfig, FileDataset
from ssl_toolkit.data.sets.list_files import Listing, read_list
from ssl_toolkit.data.sets.published import MOST_CLASSES, check_fraction, part_of_train, spread
from ssl_toolkit.errors import UserError, nearest


@dataclass
class FileListConfig(FileConfig):
    """Options of a list of images; the formats are those of `ssl_toolkit.data.sets.list_files.read_list`.

    Attributes:
        file: the list to train on; with a column ``split``, of all splits.
        val_file, test_file: lists of the other splits. Without ``val_file`` a part of ``file`` is held out; without
            ``test_file`` test is what val is.
        root: what relative paths start from; None: the folder of each list.
        labels_file, val_labels_file, test_labels_file: integer labels of the ``.npy`` list of that split.
        val_fraction: share of the training images held out where there is no list of val.
    """

    file: str | None = None
    val_file: str | None = None
    test_file: str | None = None
    root: str | None = None
    labels_file: str | None = None
    val_labels_file: str | None = None
    test_labels_file: str | None = None
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)
        for split in ("val", "test"):
            if getattr(self, f"{split}_labels_file") and not getattr(self, f"{split}_file"):
                raise ValueError(f"{split}_labels_file labels {split}_file, which is not given")


@DATASETS.register("file_list", FileListConfig)
class FileListDataset(FileDataset):
    """Images named by list files, with integer labels, class names or none.

    Labels that are all integers are the classes 0 to the largest one of training, named ``"0"``, ``"1"``, ...; names
    are numbered in sorted order.

    Splits: as the lists say. Where no list or column has val, ``val_fraction`` of the training images, chosen by a hash
    of the path as written, is held out. Where none has test, test is val.

    Not every file is looked for: only the first, the last and a few between.

    Raises:
        UserError: a list cannot be read, names an image twice or one of another split, or an image or label that
            cannot be. It names the list and the line.
    """

    def __init__(self, config: FileListConfig, split: str) -> None:
        if not config.file:
            raise UserError("data.file is not set: name the list of images with data.file=PATH (.txt, .csv or .npy)")
        self.name = "file_list"
        self.config: FileListConfig = config
        self.split = split
        lists = read_lists(config)
        _check_overlap(lists, config)
        listing, folder = _of_split(lists, config, split)
        classes, labels = number_labels(listing, lists["train"])
        super().__init__(
            folder, listing.paths, classes=classes, labels=labels, in_channels=config.in_channels, bits=config.bits
        )
        for row in spread(len(listing)):
            if not self.path(row).is_file():
                raise UserError(
                    f"{listing.where(row)}: there is no {self.path(row)}; data.root=PATH says where paths start"
                )


def read_lists(config: FileListConfig) -> dict[str, Listing]:
    """The list of each split that has one; there is always one of train."""
    found = {}
    for split in SPLITS:
        prefix = "" if split == "train" else f"{split}_"
        name, labels = getattr(config, f"{prefix}file"), getattr(config, f"{prefix}labels_file")
        if name:
            listing = read_list(Path(name).expanduser(), Path(labels).expanduser() if labels else None)
            if config.labels_file and not labels and listing.labels is None:
                raise UserError(f"data.{prefix}file has no labels, data.file has: give data.{prefix}labels_file too")
            found[split] = listing
    splits = found["train"].splits
    if splits is None:
        return found
    if len(found) > 1:
        other = "val_file" if "val" in found else "test_file"
        raise UserError(f"{found['train'].source} has a column 'split': leave data.{other} away, or the column")
    named = np.array(splits)
    found = {split: found["train"].take(np.flatnonzero(named == split)) for split in SPLITS if split in splits}
    if "train" not in found:
        raise UserError(f"{config.file}: no line has the split train")
    return found


def _folder(listing: Listing, config: FileListConfig) -> Path:
    if config.root is None:
        return listing.source.parent
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder: give the one that relative paths start from")
    return root


def _check_overlap(lists: dict[str, Listing], config: FileListConfig) -> None:
    """Raise if a list names an image twice, or one that is also trained on."""
    trained: set[str] = set()
    for split, listing in lists.items():
        paths = _full_paths(listing, _folder(listing, config))
        unique = set(paths)
        if len(unique) < len(paths):
            first: dict[str, int] = {}
            row = next(i for i, path in enumerate(paths) if first.setdefault(path, i) != i)
            raise UserError(f"{listing.where(row)}: the same image as {listing.where(first[paths[row]])}; remove one")
        if split == "train":
            trained = unique
        elif not trained.isdisjoint(unique):
            row = next(i for i, path in enumerate(paths) if path in trained)
            raise UserError(
                f"{listing.where(row)}: {listing.paths[row]} is also in {lists['train'].source} for training: "
                "evaluation needs other images"
            )


def _full_paths(listing: Listing, folder: Path) -> list[str]:
    """The paths as strings of which equal ones are one file (links aside)."""
    start = os.path.abspath(folder)  # noqa: PTH100 (resolves no links)
    full = []
    for name in listing.paths:
        plain = name[0] not in "./" and "/." not in name and "//" not in name  # normpath is slow by the million
        full.append(f"{start}/{name}" if plain else os.path.normpath(os.path.join(start, name)))  # noqa: PTH118
    return full


def _of_split(lists: dict[str, Listing], config: FileListConfig, split: str) -> tuple[Listing, Path]:
    """The list of ``split``, and where its paths start."""
    train = lists["train"]
    if split == "test" and "test" not in lists:
        split = "val"
    if split in lists and (split != "train" or "val" in lists):
        return lists[split], _folder(lists[split], config)
    kept = part_of_train(train.paths, config.val_fraction, split, train.source)
    return train.take(kept), _folder(train, config)


def number_labels(listing: Listing, train: Listing) -> tuple[tuple[str, ...] | None, NDArray[np.int64] | None]:
    """The classes, and the position in them of each label of ``listing``; None and None where it has no labels.

    The classes are those of ``train``, or of ``listing`` itself where training has none.

    Raises:
        UserError: a label that is not one of the classes, below 0 or absurdly large.
    """
    if listing.labels is None:
        return None, None
    known = listing if train.labels is None else train
    if isinstance(known.labels, np.ndarray):
        top = int(known.labels.max())
        wrong = np.flatnonzero((known.labels < 0) | (known.labels >= MOST_CLASSES))
        if len(wrong):
            raise UserError(f"{known.where(wrong[0])}: label {known.labels[wrong[0]]}; classes are 0, 1, ...")
        classes = tuple(str(i) for i in range(top + 1))
        if isinstance(listing.labels, np.ndarray):
            wrong = np.flatnonzero((listing.labels < 0) | (listing.labels > top))
            if len(wrong):
                label = listing.labels[wrong[0]]
                raise UserError(f"{listing.where(wrong[0])}: label {label}; training has 0 to {top}")
            return classes, listing.labels
    else:
        assert known.labels is not None
        classes = tuple(sorted(set(known.labels)))
    position = {name: number for number, name in enumerate(classes)}
    names = [str(label) for label in listing.labels]
    strange = next((i for i, name in enumerate(names) if name not in position), None)
    if strange is not None:
        raise UserError(
            f"{listing.where(strange)}: training has no class {names[strange]!r} ({nearest(names[strange], classes)})"
        )
    return classes, np.array([position[name] for name in names], dtype=np.int64)
