"""WebDataset: images in tar files, read at random through an index of their headers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Image, LabelledImages
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.decode import decode_image
from ssl_toolkit.data.files import FileConfig
from ssl_toolkit.data.sets.handles import PerProcess
from ssl_toolkit.data.sets.published import check_fraction, numbered_classes, part_of_train
from ssl_toolkit.data.sets.shards import NO_LABEL, Index, ShardFiles, expand, read_index, split_name
from ssl_toolkit.errors import UserError


@dataclass
class WebDatasetConfig(FileConfig):
    """Options of images in tar files.

    Attributes:
        shards: the tar files: a folder, or paths, globs and braces (``train-{000..009}.tar``) separated by commas.
        val_shards: those to validate on; None: a part of the samples of ``shards`` is held out.
        test_shards: those to report on; None: those of val.
        val_fraction: share of the samples held out where there are no ``val_shards``.
        label_key: key of the label in ``.json`` members, where there is no ``.cls``; None: those are not read.
    """

    shards: str | None = None
    val_shards: str | None = None
    test_shards: str | None = None
    val_fraction: float = 0.1
    label_key: str | None = "label"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)


@DATASETS.register("webdataset", WebDatasetConfig)
class WebDataset(LabelledImages):
    """Samples of neighbouring files in uncompressed tar files; the label is a whole number in ``.cls`` or ``.json``.

    Splits: train is ``shards``; val is ``val_shards``, or where there are none ``val_fraction`` of the samples of
    ``shards``, chosen by a hash of the key, which train then lacks; test is ``test_shards``, or val where there are
    none.

    Raises:
        UserError: a shard is missing, damaged, compressed or in two splits, or some samples have labels and some not.
    """

    def __init__(self, config: WebDatasetConfig, split: str) -> None:
        if not config.shards:
            raise UserError("data.shards is not set: say where the tar files are with data.shards=PATH/train-*.tar")
        self.name = "webdataset"
        self.config: WebDatasetConfig = config
        self.split = split
        self.in_channels = config.in_channels
        option = _option(config, split)
        lists = find_shards(config)
        self.shards, train = lists[option], lists["shards"]
        index = read_index(self.shards, config.label_key)
        labels = index.labels if option == "shards" else read_index(train, config.label_key).labels
        if option == "shards" and not (split == "train" and config.val_shards):
            keys = [split_name(os.fsdecode(name))[0] for name in index.names.tolist()]
            kept = part_of_train(keys, config.val_fraction, split, self.shards[0].parent)
            index = Index._make(values[kept] for values in index)
        self.index = index
        self._files = PerProcess(partial(ShardFiles, self.shards))
        if self._labelled(labels, train) and self._labelled(index.labels, self.shards):
            if index.labels.max() > labels.max():
                raise UserError(
                    f"data.{option} has the label {index.labels.max()}, data.shards only 0 to {labels.max()}"
                )
            self.classes = numbered_classes(labels, "data.shards")
            self.label_array = index.labels

    @staticmethod
    def _labelled(labels: NDArray[np.int64], shards: Sequence[Path]) -> bool:
        without = int((labels == NO_LABEL).sum())
        if 0 < without < len(labels):
            raise UserError(
                f"{without} of {len(labels)} samples in {shards[0].parent} have no label: add .cls files to them, "
                "or set data.label_key to the key in their .json files"
            )
        return without == 0

    def __len__(self) -> int:
        return len(self.index.names)

    def where(self, index: int) -> str:
        """Shard and name of image ``index``."""
        return f"{self.shards[int(self.index.shards[index])]}: {os.fsdecode(self.index.names[index])}"

    def raw(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image ``index``.

        Raises:
            UserError: the shard cannot be read, or ends before the image does.
        """
        size = int(self.index.sizes[index])
        raw = self._files.get().read(int(self.index.shards[index]), int(self.index.offsets[index]), size)
        if len(raw) < size:
            raise UserError(f"{self.where(index)} is cut short: replace the shard")
        if size == 0:
            raise UserError(f"{self.where(index)} is empty: replace it")
        return raw

    def image(self, index: int) -> Image:
        return decode_image(self.raw(index), self.where(index), self.in_channels, self.config.bits)

    def encoded(self, index: int) -> NDArray[np.uint8] | None:
        return self.raw(index) if self.in_channels == 3 and self.config.bits == 8 else None

    def fingerprint(self) -> str:
        """A hash of the names and sizes of the images."""
        digest = hashlib.blake2b(self.index.names.tobytes(), digest_size=8)
        digest.update(self.index.sizes.tobytes())
        return digest.hexdigest()


def find_shards(config: WebDatasetConfig) -> dict[str, list[Path]]:
    """The tar files of each option that is set.

    Raises:
        UserError: one is not there, or one to train on is also one to evaluate on.
    """
    options = ("shards", "val_shards", "test_shards")
    lists = {option: expand(f"data.{option}", getattr(config, option)) for option in options if getattr(config, option)}
    train = {path.resolve() for path in lists["shards"]}
    for option in options[1:]:
        shared = train & {path.resolve() for path in lists.get(option, ())}
        if shared:
            raise UserError(f"{min(shared)} is in data.shards and data.{option}: evaluation needs other images")
    return lists


def _option(config: WebDatasetConfig, split: str) -> str:
    """Which option names the shards of ``split``."""
    if split == "test" and config.test_shards:
        return "test_shards"
    return "val_shards" if split != "train" and config.val_shards else "shards"
