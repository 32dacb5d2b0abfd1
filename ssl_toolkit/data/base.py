"""What every data set is, whatever it was read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""``(H, W, C)``, uint8, or float32 in the same units (0 to 255) where the data has 16 bits."""

SPLITS = ("train", "val", "test")

VOID = 255
"""Value of mask pixels that belong to no class and count nowhere."""


@dataclass
class DataConfig:
    """Options that every data set has.

    Attributes:
        mean, std: per channel, in [0, 1] units, subtracted and divided on the device.
        eval_resize: the shorter side in pixels before the centre crop at evaluation.
        eval_size: side in pixels of that centre crop.
    """

    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    eval_resize: int = 256
    eval_size: int = 224

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std has {len(self.std)}")
        if not self.mean:
            raise ValueError("mean and std have no value: give one per channel")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {list(self.std)}")
        if not 0 < self.eval_size <= self.eval_resize:
            raise ValueError(f"eval_size {self.eval_size} must be between 1 and eval_resize {self.eval_resize}")


class Objects(NamedTuple):
    """The annotated objects of one image.

    Attributes:
        boxes: ``(n, 4)`` float32, ``x0, y0, x1, y1`` in pixels, half open.
        labels: ``(n,)`` int64, positions in ``object_classes``.
        ignore: ``(n,)`` bool, objects that detection metrics skip (difficult ones of VOC, crowds of COCO).
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]


class ImageDataset(ABC):
    """Images with optional labels, masks and objects, read by position.

    Attributes:
        name: the registered name (``digit_scenes``).
        split: ``train``, ``val`` or ``test``.
        config: the options it was made from.
        classes: names of the image classes, or None where there are no labels.
        mask_classes: names of the pixel classes, background first if there is one, or None where there are no masks.
        object_classes: names of the classes of objects, or None where there are no boxes.
        has_instance_masks: whether each object has a mask.
        in_channels: channels of every image.
    """

    name: str
    split: str
    config: DataConfig
    classes: tuple[str, ...] | None = None
    mask_classes: tuple[str, ...] | None = None
    object_classes: tuple[str, ...] | None = None
    has_instance_masks: bool = False
    in_channels: int = 3

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image:
        """Image ``index``. A file that cannot be decoded is a `UserError` that names it."""

    def encoded(self, index: int) -> NDArray[np.uint8] | None:
        """The bytes of the file of image ``index``, ``(n,)``, for engines with a decoder of their own.

        None where images are arrays, or where ``image`` is more than the decoded file. A file that cannot be read is a
        `UserError` that names it.
        """
        return None

    def label(self, index: int) -> int:
        """Class of image ``index``; only where ``classes`` is not None."""
        raise NotImplementedError

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Pixel classes of image ``index``, ``(H, W)``, 255 where void; only where ``mask_classes`` is not None."""
        raise NotImplementedError

    def objects(self, index: int) -> Objects:
        """The objects in image ``index``; only where ``object_classes`` is not None."""
        raise NotImplementedError

    def instance_masks(self, index: int) -> NDArray[np.bool_]:
        """The pixels of each object of ``objects(index)``, ``(n, H, W)``; only where ``has_instance_masks``."""
        raise NotImplementedError

    def labels(self) -> NDArray[np.int64]:
        """Labels of all images, ``(len,)``."""
        return np.array([self.label(i) for i in range(len(self))], dtype=np.int64)

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when the images do (contents, or names and sizes of files)."""


class LabelledImages(ImageDataset):
    """Images whose labels are an array.

    Attributes:
        label_array: ``(len,)`` int64, or None where there are no labels.
    """

    label_array: NDArray[np.int64] | None = None

    def label(self, index: int) -> int:
        return int(self._known()[index])

    def labels(self) -> NDArray[np.int64]:
        return self._known().copy()

    def _known(self) -> NDArray[np.int64]:
        if self.label_array is None:
            raise NotImplementedError(f"{type(self).__name__} has no labels here")
        return self.label_array
