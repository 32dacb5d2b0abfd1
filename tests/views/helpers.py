"""Data sets and recipes that the tests of views share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images

from ssl_toolkit.data.decode import decode_image
from ssl_toolkit.views import ViewBatch, ViewDataset, ViewGroup, ViewsConfig

PLAIN: dict[str, Any] = {"jitter": 0.0, "gray": 0.0, "blur": [0.0], "solarize": [0.0]}


class Ramps:
    """Images whose first channel is the column and second the row, so that a view tells where it was cut."""

    classes: tuple[str, ...] | None = ("a", "b")
    in_channels = 3

    def __init__(self, count: int = 20, height: int = 60, width: int = 100) -> None:
        rows, columns = np.mgrid[:height, :width]
        self.pixels = np.stack((columns, rows, np.full_like(rows, 7)), -1).astype(np.uint8)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        return self.pixels

    def encoded(self, index: int) -> np.ndarray | None:
        return None

    def label(self, index: int) -> int:
        return index % 2


def jpeg(picture: np.ndarray | PIL.Image.Image, **options: Any) -> np.ndarray:
    """The bytes of a JPEG file."""
    file = io.BytesIO()
    image = PIL.Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(file, "JPEG", **{"quality": 90, **options})
    return np.frombuffer(file.getvalue(), np.uint8).copy()


class Photos(Ramps):
    """JPEG files: crops of scikit-learn's two photographs, each of its own size."""

    def __init__(self, count: int = 12) -> None:
        self.count = count
        china, flower = load_sample_images().images
        self.files = [jpeg((china if i % 2 else flower)[5 * i : 300 + 3 * i, 7 * i : 400 - i]) for i in range(count)]

    def encoded(self, index: int) -> np.ndarray | None:
        return self.files[index]

    def image(self, index: int) -> np.ndarray:
        return decode_image(self.files[index], f"photo {index}", self.in_channels)


def views(*groups: ViewGroup) -> ViewsConfig:
    return ViewsConfig(groups=list(groups))


def make(dataset: ViewDataset, count: int = 8, epoch: int = 0) -> ViewBatch:
    batch = dataset.__getitems__([(epoch, i) for i in range(count)])
    assert isinstance(batch, ViewBatch)
    return batch
