"""Fashion-MNIST (Xiao et al. 2017, MIT licence) from its idx files, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import DataConfig
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.sets.in_memory import InMemory
from ssl_toolkit.errors import UserError

DEBIAN_ROOT = "/usr/share/datasets/fashion-mnist"
VAL_SHARE = 12
"""The last 1 in 12 training images of each class validate: 500 of 6,000."""

_IMAGES_MAGIC = 0x0803  # unsigned bytes, 3 dimensions
_LABELS_MAGIC = 0x0801
_SIDE = 28


@dataclass
class FashionMnistConfig(DataConfig):
    """Options of Fashion-MNIST.

    Attributes:
        root: folder with the four idx files, each plain or ``.gz``.
    """

    mean: list[float] = field(default_factory=lambda: [0.286])
    std: list[float] = field(default_factory=lambda: [0.353])
    eval_resize: int = 28
    eval_size: int = 28
    root: str = DEBIAN_ROOT

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != 1:
            raise ValueError(f"mean has {len(self.mean)} channels, Fashion-MNIST has 1")


@DATASETS.register("fashion_mnist", FashionMnistConfig)
class FashionMnist(InMemory):
    """70,000 gray images of clothes, 28x28, ten classes: 55,000 train, 5,000 val, 10,000 test.

    Attributes:
        images: ``(N, 28, 28, 1)`` uint8.
        label_array: ``(N,)`` int64.

    Raises:
        UserError: a file is missing, cut short or not what its header says.
    """

    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    in_channels = 1

    def __init__(self, config: FashionMnistConfig, split: str) -> None:
        self.name = "fashion_mnist"
        self.config: FashionMnistConfig = config
        self.split = split
        root = Path(config.root).expanduser()
        part = "t10k" if split == "test" else "train"
        image_file, label_file = _find(root, f"{part}-images-idx3"), _find(root, f"{part}-labels-idx1")
        images = read_idx(image_file, _IMAGES_MAGIC)
        labels = read_idx(label_file, _LABELS_MAGIC).astype(np.int64)
        if images.shape[1:] != (_SIDE, _SIDE):
            raise UserError(f"{image_file} holds images of {images.shape[1]}x{images.shape[2]}, not 28x28")
        if len(images) != len(labels):
            raise UserError(f"{image_file} holds {len(images)} images, {label_file} {len(labels)} labels")
        if len(labels) == 0:
            raise UserError(f"{image_file} holds no images")
        if labels.max() >= len(self.classes):
            raise UserError(f"{label_file} holds the label {labels.max()}; labels are 0 to 9")
        kept = np.arange(len(labels)) if split == "test" else _part_of_train(labels, split)
        if len(kept) == 0:
            raise UserError(f"{image_file} holds too few images for a {split} split")
        self.images = images[kept][..., None]
        self.label_array = labels[kept]


def _part_of_train(labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Positions, in file order, of the training images that belong to ``split``."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[members[len(members) - len(members) // VAL_SHARE :]] = True
    return np.flatnonzero(held_out if split == "val" else ~held_out)


def _find(root: Path, stem: str) -> Path:
    for name in (f"{stem}-ubyte", f"{stem}-ubyte.gz"):
        if (root / name).is_file():
            return root / name
    raise UserError(
        f"no {stem}-ubyte[.gz] in {root}: install it with 'apt-get install dataset-fashion-mnist' "
        "or say where the idx files are with data.root=PATH"
    )


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes; its number of dimensions is the last byte of ``magic``.

    Raises:
        UserError: the file cannot be read, has another magic number, or its size is not what its header says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise UserError(f"cannot read {path}: {error}") from error
    header = 4 + 4 * (magic & 0xFF)
    if len(raw) < header:
        raise UserError(f"{path} is cut short: {len(raw)} bytes, a header has {header}")
    found, *shape = (int(v) for v in np.frombuffer(raw, dtype=">u4", count=header // 4))
    if found != magic:
        raise UserError(f"{path} is not the idx file it should be: magic number {found:#x}, not {magic:#x}")
    if len(raw) - header != math.prod(shape):
        size = "x".join(map(str, shape))
        raise UserError(f"{path} holds {len(raw) - header} bytes of data, its header says {size}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
