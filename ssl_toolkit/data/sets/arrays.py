"""Images in arrays: ``.npy``, ``.npz`` and HDF5 files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Image, LabelledImages
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileConfig
from ssl_toolkit.data.sets.array_source import KINDS, ArraySource, find_array, same_array
from ssl_toolkit.data.sets.published import check_fraction, numbered_classes, part_of_train, spread
from ssl_toolkit.errors import UserError, nearest

LAYOUTS = ("auto", "hwc", "chw")


@dataclass
class ArraysConfig(FileConfig):
    """Options of images in arrays.

    Attributes:
        images: ``FILE.npy``, ``FILE.npz:KEY`` or ``FILE.h5:KEY`` of ``(N, H, W)``, ``(N, H, W, C)`` or
            ``(N, C, H, W)``, uint8 or uint16.
        labels: the same for ``(N,)`` whole numbers from 0, or None.
        val_images, val_labels: the validation images; None: a part of ``images`` is held out.
        test_images, test_labels: the images to report on; None: those of val.
        val_fraction: share of ``images`` held out where there are no ``val_images``.
        layout: where the channels are: ``hwc``, ``chw``, or ``auto``: the axis that is as long as ``in_channels``.
    """

    images: str | None = None
    labels: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None
    val_fraction: float = 0.1
    layout: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}: {nearest(self.layout, LAYOUTS)}")
        for part, images, labels in (
            ("val_", self.val_images, self.val_labels),
            ("test_", self.test_images, self.test_labels),
        ):
            if labels and not images:
                raise ValueError(f"{part}labels is set and {part}images is not: give both")
            if images and bool(labels) != bool(self.labels):
                raise ValueError(f"labels and {part}labels belong together: give both or neither")


@DATASETS.register("arrays", ArraysConfig)
class Arrays(LabelledImages):
    """Images in arrays, read from disk one by one (an ``.npz`` file is loaded whole).

    Splits: train is ``images``; val is ``val_images``, or where there are none ``val_fraction`` of ``images``, chosen
    by a hash of the position, which train then lacks; test is ``test_images``, or val where there are none.

    Raises:
        UserError: a file or key is missing, an array is of the wrong type, shape or length, or that to train on is also
            to evaluate on.
    """

    def __init__(self, config: ArraysConfig, split: str) -> None:
        if not config.images:
            raise UserError(f"data.images is not set: say where the images are with data.images={KINDS}")
        self.name = "arrays"
        self.config: ArraysConfig = config
        self.split = split
        self.in_channels = config.in_channels
        part = _part(config, split)
        self.source = ArraySource(f"data.{part}images", getattr(config, f"{part}images"))
        self._axis = channel_axis(self.source, config.in_channels, config.layout)
        _check_others(config)
        self._kept = np.arange(len(self.source))
        if not part and not (split == "train" and config.val_images):
            names = [str(number) for number in range(len(self.source))]
            self._kept = part_of_train(names, config.val_fraction, split, self.source.path)
        if config.labels:
            own = _read_labels(f"data.{part}labels", getattr(config, f"{part}labels"), self.source)
            train = _read_labels("data.labels", config.labels, None) if part else own
            if own.max() > train.max():
                raise UserError(f"data.{part}labels has the label {own.max()}, data.labels only 0 to {train.max()}")
            self.classes = numbered_classes(train, f"data.labels={config.labels}")
            self.label_array = own[self._kept]

    def __len__(self) -> int:
        return len(self._kept)

    def image(self, index: int) -> Image:
        pixels = self.source.row(int(self._kept[index]))
        pixels = pixels[:, :, None] if self._axis is None else np.moveaxis(pixels, self._axis, 2)
        deep = pixels.dtype == np.uint16
        if self.config.bits == 16:
            values = np.array(pixels, dtype=np.float32, order="C")
            return values / np.float32(257) if deep else values
        return np.array(pixels >> 8 if deep else pixels, dtype=np.uint8, order="C")

    def fingerprint(self) -> str:
        """A hash of the shape, of which images are in the split, and of a few of them."""
        digest = hashlib.blake2b(repr((self.source.shape, self.source.dtype.str)).encode(), digest_size=8)
        digest.update(self._kept.tobytes())
        for index in spread(len(self)):
            digest.update(self.image(index).tobytes())
        return digest.hexdigest()


def _part(config: ArraysConfig, split: str) -> str:
    """Which options ``split`` reads: those that begin with ``test_``, ``val_`` or nothing."""
    if split == "test" and config.test_images:
        return "test_"
    return "val_" if split != "train" and config.val_images else ""


def _check_others(config: ArraysConfig) -> None:
    """Raise a UserError if a file of another split is not there, or is the one to train on."""
    for option in ("val_images", "val_labels", "test_images", "test_labels"):
        value = getattr(config, option)
        if value:
            find_array(f"data.{option}", value)
        if value and option.endswith("images") and same_array(value, str(config.images)):
            raise UserError(f"data.{option}={value} is what data.images is: evaluation needs other images")


def channel_axis(source: ArraySource, channels: int, layout: str) -> int | None:
    """Which axis of one image holds the channels, 0 or 2, or None where there is none.

    Raises:
        UserError: the array is none of images with ``channels`` channels, or both axes could be it.
    """
    what, shape = f"{source.option}={source.path} of shape {source.shape}", source.shape
    if source.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UserError(f"{what} has values of type {source.dtype}: images are uint8 (0 to 255) or uint16 (0 to 65535)")
    if len(shape) not in (3, 4) or 0 in shape:
        raise UserError(f"{what} holds no images: the shape is (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if len(shape) == 3:
        if channels != 1:
            raise UserError(f"{what} has no axis of channels: set data.in_channels=1, not {channels}")
        return None
    found = {"hwc": [3], "chw": [1], "auto": [1, 3]}[layout]
    found = [axis for axis in found if shape[axis] == channels]
    if not found:
        raise UserError(f"{what} has no axis of {channels} channels: set data.in_channels (or data.layout)")
    if len(found) == 2:
        raise UserError(f"{what} could be either way round: set data.layout=hwc or chw")
    return found[0] - 1


def _read_labels(option: str, value: str, images: ArraySource | None) -> NDArray[np.int64]:
    """``(N,)`` labels; those of ``images`` are as many."""
    source = ArraySource(option, value)
    labels = source.whole()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{option}={source.path} is {labels.dtype} of shape {labels.shape}: labels are whole numbers, one per image"
        )
    if images is not None and len(labels) != len(images):
        raise UserError(f"{option}={source.path} holds {len(labels)} labels, {images.path} {len(images)} images")
    if labels.min() < 0:
        raise UserError(f"{option}={source.path} holds the label {labels.min()}: labels count from 0")
    return labels.astype(np.int64)
