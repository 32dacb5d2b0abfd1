"""CUB-200-2011 (Wah et al. 2011): birds with their species and a box each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Objects
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.sets.published import (
    PublishedConfig,
    Source,
    check_fraction,
    check_present,
    part_of_train,
    read_rows,
    whole_numbers,
)
from ssl_toolkit.errors import UserError

_SOURCE = Source(
    title="CUB-200-2011",
    inner="CUB_200_2011",
    markers=("images", "images.txt"),
    url="https://www.vision.caltech.edu/datasets/cub_200_2011/",
)


@dataclass
class Cub200Config(PublishedConfig):
    """Options of CUB-200-2011.

    Attributes:
        val_fraction: share of the publisher's training images held out for val.
    """

    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)


@DATASETS.register("cub200", Cub200Config)
class Cub200(FileDataset):
    """11,788 images of 200 species of birds; the bird in each has a box.

    Splits: test is the publisher's (5,794 images); val is ``val_fraction`` of their training images (5,994), chosen by
    a hash of the names; train is the rest.

    Raises:
        UserError: a file is missing, has a line too few, or a label or box that cannot be.
    """

    def __init__(self, config: Cub200Config, split: str) -> None:
        self.name = "cub200"
        self.config: Cub200Config = config
        self.split = split
        root = _SOURCE.folder(config.root)
        names = dict(read_rows(root / "images.txt", 2))
        ids = list(names)
        self.classes = self.object_classes = _species(root / "classes.txt")
        label_file, split_file = root / "image_class_labels.txt", root / "train_test_split.txt"
        labels = whole_numbers([row[0] for row in by_id(label_file, 1, ids)], label_file, 1, len(self.classes)) - 1
        training = whole_numbers([row[0] for row in by_id(split_file, 1, ids)], split_file, 0, 1) == 1
        boxes = _boxes(root / "bounding_boxes.txt", ids)
        rows = np.flatnonzero(training if split != "test" else ~training)
        if len(rows) == 0:
            raise UserError(f"{split_file} has no image for {split}: unpack it again")
        if split != "test":
            train = [names[ids[row]] for row in rows]
            rows = rows[part_of_train(train, config.val_fraction, split, split_file)]
        files = [names[ids[row]] for row in rows]
        check_present(root / "images", files, root / "images.txt")
        super().__init__(root / "images", files, classes=self.classes, labels=labels[rows])
        self._boxes = boxes[rows]

    def objects(self, index: int) -> Objects:
        """The one bird that is annotated, with the image's species."""
        return Objects(
            self._boxes[index : index + 1].copy(), np.array([self.label(index)], np.int64), np.zeros(1, np.bool_)
        )


def by_id(path: Path, columns: int, ids: Sequence[str]) -> list[list[str]]:
    """What stands behind the image id on each line of ``path``, in the order of ``ids``.

    Raises:
        UserError: the file cannot be read, or has no line for an id.
    """
    rows = {row[0]: row[1:] for row in read_rows(path, 1 + columns)}
    lacking = next((name for name in ids if name not in rows), None)
    if lacking is not None:
        raise UserError(f"{path} has no line for image {lacking} of images.txt: unpack it again")
    return [rows[name] for name in ids]


def _species(path: Path) -> tuple[str, ...]:
    """``001.Black_footed_Albatross`` is the Black footed Albatross."""
    rows = read_rows(path, 2)
    if [row[0] for row in rows] != [str(i + 1) for i in range(len(rows))]:
        raise UserError(f"{path} does not number the classes from 1 up: unpack it again")
    return tuple(row[1].partition(".")[2].replace("_", " ") or row[1] for row in rows)


def _boxes(path: Path, ids: Sequence[str]) -> NDArray[np.float32]:
    """``(n, 4)`` corners, from left, top, width and height in pixels."""
    rows = by_id(path, 4, ids)
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path} holds something that is no number ({error}): unpack it again") from error
    bad = np.flatnonzero(~(np.isfinite(values).all(1) & (values[:, 2:] > 0).all(1)))
    if len(bad):
        raise UserError(f"{path}: the box of image {ids[bad[0]]} is empty: unpack it again")
    values[:, 2:] += values[:, :2]
    return values.astype(np.float32)
