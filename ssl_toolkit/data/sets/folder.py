"""A folder of one's own images, labelled by its sub-folders or not, with optional masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import VOID
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileConfig, FileDataset
from ssl_toolkit.data.layout import LABEL_MODES, Layout
from ssl_toolkit.data.sets.masks import class_mask, plain_table
from ssl_toolkit.errors import UserError, nearest


@dataclass
class FolderConfig(FileConfig):
    """Options of a folder of images.

    Attributes:
        root: the folder. It may hold ``train``, ``val`` and ``test`` folders.
        labels: ``folders``: the first folder below the split is the class. ``none``: no labels. ``auto``:
            labels if all images lie in such folders and there are at least two.
        val_fraction: share of the training images held out where there is no ``val`` folder.
        masks: folder with one PNG per image under the same relative path, or None.
        mask_classes: names of the pixel values 0, 1, ... of the masks, background first; 255 is void.
    """

    root: str | None = None
    labels: str = "auto"
    val_fraction: float = 0.1
    masks: str | None = None
    mask_classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in LABEL_MODES:
            raise ValueError(f"unknown labels {self.labels!r}: {nearest(self.labels, LABEL_MODES)}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction {self.val_fraction} must be at least 0 and below 1")
        if bool(self.masks) != bool(self.mask_classes):
            raise ValueError("masks and mask_classes belong together: give both or neither")
        if len(self.mask_classes) > VOID:
            raise ValueError(f"mask_classes has {len(self.mask_classes)} names, at most {VOID} fit")


@DATASETS.register("folder", FolderConfig)
class FolderDataset(FileDataset):
    """Images below a folder; `ssl_toolkit.data.layout` says which belong to which split.

    Attributes:
        folder: what relative paths start from: ``root``, or the split's folder in it.

    Raises:
        UserError: no such folder, no image, no such split, or splits that overlap.
    """

    def __init__(self, config: FolderConfig, split: str) -> None:
        if not config.root:
            raise UserError("data.root is not set: say where the images are with data.root=PATH")
        self.name = "folder"
        self.config: FolderConfig = config
        self.split = split
        self.root = Path(config.root).expanduser()
        self._masks = Path(config.masks).expanduser() if config.masks else None
        if self._masks is not None and not self._masks.is_dir():
            raise UserError(f"data.masks={self._masks} is not a folder: give the one that holds the masks")
        part = Layout(self.root, config.labels, config.val_fraction, self._masks).part(split)
        labels = None
        if part.classes is not None:
            position = {name: number for number, name in enumerate(part.classes)}
            labels = [position[name.split("/", 1)[0]] for name in part.files]
        super().__init__(
            part.folder,
            part.files,
            classes=part.classes,
            labels=labels,
            in_channels=config.in_channels,
            bits=config.bits,
        )
        self.mask_classes = tuple(config.mask_classes) if self._masks is not None else None

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Pixel classes of image ``index``, ``(H, W)`` uint8, 255 where void.

        Raises:
            UserError: there is no mask for the image, it has another size, or a value without a class.
        """
        if self._masks is None or self.mask_classes is None:
            raise NotImplementedError("data.masks is not set")
        image = self.path(index)
        below = image.relative_to(self.root)
        path = self._masks / below.with_suffix(".png")
        count = len(self.mask_classes)
        return class_mask(path, image, plain_table(count), f"data.mask_classes names {count} classes, {VOID} is void")
