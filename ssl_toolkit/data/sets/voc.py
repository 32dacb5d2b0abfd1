"""PASCAL VOC 2007 and 2012 (Everingham et al.): masks of 21 classes, or boxes of 20."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Objects
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.sets.masks import class_mask, plain_table
from ssl_toolkit.data.sets.published import DownloadConfig, Source, check_present, read_lines
from ssl_toolkit.errors import UserError, nearest

YEARS = ("2007", "2012")
TASKS = ("segmentation", "detection")
BOTH_YEARS = "trainval07+12"
TRAIN_LISTS = ("train", "trainval", BOTH_YEARS)

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass
class VocConfig(DownloadConfig):
    """Options of PASCAL VOC.

    Attributes:
        year: 2007 or 2012.
        task: ``segmentation`` (the images with masks) or ``detection`` (all images, with boxes).
        aug: train on the 10,582 images of ``trainaug.txt`` and ``SegmentationClassAug`` (SBD's masks; Hariharan et al.
            2011), for the segmentation of 2012.
        train_list: ``train``, or for 2007 ``trainval``, which leaves the test images for both val and test, or
            ``trainval07+12``, which trains on those of 2012 too (detection).
    """

    year: str = "2012"
    task: str = "segmentation"
    aug: bool = False
    train_list: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, valid in (("year", YEARS), ("task", TASKS), ("train_list", TRAIN_LISTS)):
            if getattr(self, key) not in valid:
                raise ValueError(f"unknown {key} {getattr(self, key)!r}: {nearest(getattr(self, key), valid)}")
        if self.aug and (self.year, self.task, self.train_list) != ("2012", "segmentation", "train"):
            raise ValueError("aug is for year=2012 task=segmentation train_list=train")
        if self.train_list != "train" and self.year != "2007":
            raise ValueError(
                f"train_list={self.train_list} is for year=2007: the labels of the test images of 2012 are not public"
            )
        if self.train_list == BOTH_YEARS and self.task != "detection":
            raise ValueError(f"train_list={BOTH_YEARS} is for task=detection")


@DATASETS.register("voc", VocConfig)
class Voc(FileDataset):
    """PASCAL VOC, with masks or boxes as ``task`` says; an image has several classes, so there is no label.

    Splits: train and val are the publisher's (segmentation 2012: 1,464 and 1,449; detection 2012: 5,717 and 5,823).
    test is the publisher's for 2007 where it is unpacked, else val. With ``train_list=trainval`` test is also val;
    ``trainval07+12`` has 16,551 images to train on.

    Raises:
        UserError: a list or folder is missing, or train and val share images.
    """

    def __init__(self, config: VocConfig, split: str) -> None:
        self.name = "voc"
        self.config: VocConfig = config
        self.split = split
        self.root = find_root(config)
        names = self._names(split)
        shared = set(names) & set(self._names("val")) if split == "train" else set()
        if shared:
            raise UserError(f"{self._list('train')} and {self._list('val')} share {len(shared)} images ({min(shared)})")
        files = [f"{name}.jpg" for name in names]
        check_present(self.root / "JPEGImages", files, self._list(split))
        if split == "train" and config.train_list == BOTH_YEARS:
            files += self._files_of_2012()
        super().__init__(self.root / "JPEGImages", files)
        self._masks = self.root / ("SegmentationClassAug" if config.aug and split == "train" else "SegmentationClass")
        if config.task == "segmentation":
            if not self._masks.is_dir():
                raise UserError(f"no folder {self._masks}: unpack the masks there, or set data.task=detection")
            self.mask_classes = ("background", *CLASSES)
        else:
            if not (self.root / "Annotations").is_dir():
                raise UserError(f"no folder {self.root / 'Annotations'}: unpack the annotations again")
            self.object_classes = CLASSES

    def _list(self, split: str) -> Path:
        """The file that lists the images of ``split``."""
        folder = self.root / "ImageSets" / ("Segmentation" if self.config.task == "segmentation" else "Main")
        if split == "train":
            name = "trainval" if self.config.train_list == BOTH_YEARS else self.config.train_list
            return folder / ("trainaug.txt" if self.config.aug else f"{name}.txt")
        test = folder / "test.txt"
        if self.config.train_list != "train":
            return test
        return test if split == "test" and self.config.year == "2007" and test.is_file() else folder / "val.txt"

    def _names(self, split: str) -> list[str]:
        """File names without suffix; the lists of SBD that go around hold paths of images and masks."""
        path = self._list(split)
        if not path.is_file():
            hint = "get the list and SegmentationClassAug of SBD" if self.config.aug else "unpack the data set again"
            raise UserError(f"no list {path}: {hint}")
        names = [Path(line.split()[0]).stem for line in read_lines(path) if line.strip()]
        if not names:
            raise UserError(f"{path} lists no images: unpack it again")
        return names

    def _files_of_2012(self) -> list[str]:
        """The images of 2012's trainval, as paths below those of 2007."""
        root = None if self.config.root is None else Path(self.config.root).expanduser()
        beside = root.parent if root is not None and root.name == "VOC2007" else root
        place = None if beside is None else str(beside)
        other = find_root(dataclasses.replace(self.config, year="2012", train_list="train", root=place))
        path = other / "ImageSets" / "Main" / "trainval.txt"
        if not path.is_file():
            raise UserError(f"no list {path}: unpack the data set again")
        files = [f"{line.split()[0]}.jpg" for line in read_lines(path) if line.strip()]
        check_present(other / "JPEGImages", files, path)
        below = os.path.relpath(other / "JPEGImages", self.root / "JPEGImages").replace(os.sep, "/")
        return [f"{below}/{name}" for name in files]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Pixel classes, ``(H, W)`` uint8: 0 background, 1 to 20, 255 at the edges of objects.

        Raises:
            UserError: there is no mask for the image, it has another size, or a value without a class.
        """
        if self.mask_classes is None:
            raise NotImplementedError("data.task is not segmentation")
        image = self.path(index)
        rule = "VOC has the classes 0 to 20, 255 is void"
        return class_mask(self._masks / f"{image.stem}.png", image, plain_table(len(self.mask_classes)), rule)

    def objects(self, index: int) -> Objects:
        """The objects of an image; those marked difficult are to be ignored.

        Raises:
            UserError: the annotation is missing or damaged.
        """
        if self.object_classes is None:
            raise NotImplementedError("data.task is not detection")
        image = self.path(index)
        return read_objects(image.parent.parent / "Annotations" / f"{image.stem}.xml")


def find_root(config: VocConfig) -> Path:
    """The folder of the year, wherever ``root`` points.

    Raises:
        UserError: it is not there.
    """
    inner = f"VOC{config.year}"
    source = Source(
        title=f"PASCAL VOC {config.year}",
        inner=f"VOCdevkit/{inner}",
        markers=("JPEGImages", "ImageSets"),
        url=f"http://host.robots.ox.ac.uk/pascal/VOC/voc{config.year}/",
        fetch=lambda place: _fetch(place, config.year),
    )
    root = None if config.root is None else Path(config.root).expanduser()
    if root is not None and root.name in {f"VOC{year}" for year in YEARS} - {inner}:
        raise UserError(f"data.root={root} is another year than data.year={config.year}: change one or the other")
    if root is not None and (root / inner).is_dir():
        root = root / inner
    return source.folder(None if root is None else str(root), config.download)


def _fetch(place: Path, year: str) -> None:
    from torchvision.datasets import VOCSegmentation

    for part in ("trainval", "test") if year == "2007" else ("trainval",):
        VOCSegmentation(str(place), year=year, image_set=part, download=True)


def read_objects(path: Path) -> Objects:
    """The objects of an annotation file of VOC. Its boxes count pixels from 1 and include the last.

    Raises:
        UserError: the file cannot be read, or does not say class and box of each object.
    """
    number = {name: position for position, name in enumerate(CLASSES)}
    rows: list[tuple[list[float], int, bool]] = []
    try:
        for entry in ElementTree.parse(path).getroot().iterfind("object"):
            name = (entry.findtext("name") or "").strip()
            x0, y0, x1, y1 = (float(entry.findtext(f"bndbox/{k}") or "?") for k in ("xmin", "ymin", "xmax", "ymax"))
            if name not in number or x1 < x0 or y1 < y0:
                raise ValueError(f"an object {name!r} with the box {x0:g} {y0:g} {x1:g} {y1:g}")
            rows.append(([x0 - 1, y0 - 1, x1, y1], number[name], (entry.findtext("difficult") or "0").strip() == "1"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not an annotation of VOC ({error}): unpack it again") from error
    boxes = np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4)
    return Objects(boxes, np.array([row[1] for row in rows], dtype=np.int64), np.array([row[2] for row in rows], bool))
