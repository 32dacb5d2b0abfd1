"""COCO (Lin et al. 2014): images with boxes and masks of objects of 80 classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Objects
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import check_apart, find_images
from ssl_toolkit.data.sets.coco_annotations import read_instances
from ssl_toolkit.data.sets.coco_masks import decoded_masks, read_masks
from ssl_toolkit.data.sets.packed import Arrays
from ssl_toolkit.data.sets.published import PublishedConfig, check_present
from ssl_toolkit.errors import UserError


@dataclass
class CocoConfig(PublishedConfig):
    """Options of COCO.

    Attributes:
        year: of the folders (``train2017``) and annotations (``instances_train2017.json``).
    """

    year: str = "2017"


@DATASETS.register("coco", CocoConfig)
class Coco(FileDataset):
    """COCO's images, those without objects among them, its boxes and the masks of its objects; there is no label.

    Splits: train is the publisher's (2017: 118,287 images); val and test are both their val (5,000; the labels of their
    test images are not public). Without ``annotations/instances_*.json`` it is a folder of images to pretrain on.

    Raises:
        UserError: a folder is missing or holds no image, or the annotations are not COCO's.
    """

    def __init__(self, config: CocoConfig, split: str) -> None:
        self.name = "coco"
        self.config: CocoConfig = config
        self.split = split
        part = f"{'train' if split == 'train' else 'val'}{config.year}"
        root = find_root(config.root, part)
        folder = root / "images" / part if (root / "images" / part).is_dir() else root / part
        check_apart(folder.with_name(f"train{config.year}"), folder.with_name(f"val{config.year}"))
        self._annotations = annotations = root / "annotations" / f"instances_{part}.json"
        self._masks: Arrays | None = None
        self._packed = read_instances(annotations) if annotations.is_file() else None
        self.has_instance_masks = self._packed is not None
        if self._packed is None:
            files = find_images(folder)
        else:
            files = [name.decode("utf-8") for name in self._packed["files"].tolist()]
            self.object_classes = tuple(name.decode("utf-8") for name in self._packed["classes"].tolist())
            check_present(folder, files, annotations)
        if not files:
            raise UserError(f"no images in {folder}: unpack {part}.zip again")
        super().__init__(folder, files)

    def objects(self, index: int) -> Objects:
        """The objects of an image; crowds are to be ignored, boxes without area are left out."""
        if self._packed is None:
            raise NotImplementedError("there is no annotations/")
        here = slice(*self._packed["starts"][index : index + 2].tolist())
        return Objects(*(self._packed[key][here].copy() for key in ("boxes", "labels", "ignore")))

    def instance_masks(self, index: int) -> NDArray[np.bool_]:
        """The masks of the objects of an image, decoded from run lengths, which the first call reads (or makes).

        Raises:
            UserError: the annotations hold an object without a mask.
        """
        if self._packed is None:
            raise NotImplementedError("there is no annotations/")
        if self._masks is None:
            self._masks = read_masks(self._annotations)
        return decoded_masks(self._masks, index, slice(*self._packed["starts"][index : index + 2].tolist()))


def find_root(root: str | None, part: str) -> Path:
    """The folder that holds the images of ``part``: ``root``, or ``coco`` in it.

    Raises:
        UserError: it is not there.
    """
    if root is None:
        raise UserError("data.root is not set: say where COCO is with data.root=PATH (https://cocodataset.org)")
    base = Path(root).expanduser()
    for folder in (base, base / "coco"):
        if (folder / part).is_dir() or (folder / "images" / part).is_dir():
            return folder
    raise UserError(
        f"no COCO in {base} (looked for {part}/ and images/{part}/): unpack {part}.zip of https://cocodataset.org "
        "there, or say where it is with data.root=PATH"
    )
