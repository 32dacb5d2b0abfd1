"""COCO (Lin et al. 2014): images with boxes of 80 classes."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Objects
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import check_apart, find_images
from ssl_toolkit.data.sets.packed import Arrays, cached_arrays, file_key
from ssl_toolkit.data.sets.published import PublishedConfig, check_present
from ssl_toolkit.errors import UserError
from ssl_toolkit.progress import Bar, progress_bar

_FORMAT = "1"


@dataclass
class CocoConfig(PublishedConfig):
    """Options of COCO.

    Attributes:
        year: of the folders (``train2017``) and annotations (``instances_train2017.json``).
    """

    year: str = "2017"


@DATASETS.register("coco", CocoConfig)
class Coco(FileDataset):
    """COCO's images, those without objects among them, and its boxes; there is no label.

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
        annotations = root / "annotations" / f"instances_{part}.json"
        self._packed = read_instances(annotations) if annotations.is_file() else None
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


def read_instances(path: Path) -> Arrays:
    """The annotations of COCO in arrays, parsed once and kept in the cache folder.

    Returns:
        ``files`` ``(n,)`` in order, ``classes`` ``(k,)`` in order of category id, and of all objects, sorted by image:
        ``boxes`` ``(m, 4)`` float32 XYXY, ``labels`` ``(m,)`` int64, ``ignore`` ``(m,)`` bool; those of image ``i`` are
        ``starts[i]`` to ``starts[i + 1]``.

    Raises:
        UserError: the file cannot be read, or is not COCO's.
    """
    return cached_arrays("coco", [_FORMAT, file_key(path)], lambda: _pack(path))


class _Rows:
    """Annotations as the parser meets them: packed at once, since as objects they take gigabytes."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.boxes = array("d")
        self.images, self.categories, self.crowd = array("q"), array("q"), array("b")

    def take(self, entry: dict[str, Any]) -> Any:
        """What the parser keeps of an object in the file."""
        if "image_id" in entry:
            x, y, width, height = entry["bbox"]
            self.boxes.extend((x, y, x + width, y + height))
            self.images.append(entry["image_id"])
            self.categories.append(entry["category_id"])
            self.crowd.append(entry.get("iscrowd", 0))
            self.bar.advance()
            return None
        if "file_name" in entry:
            return entry["id"], entry["file_name"]
        return entry if entry.keys() & {"images", "categories", "name"} else None


def _pack(path: Path) -> Arrays:
    try:
        text = path.read_text(encoding="utf-8")
        with progress_bar(f"reading {path.name}", text.count('"image_id"'), "objects") as bar:
            rows = _Rows(bar)
            top = json.loads(text, object_hook=rows.take)
        images: list[tuple[int, str]] = sorted(top["images"], key=lambda row: row[1])
        classes = sorted((int(entry["id"]), str(entry["name"])) for entry in top["categories"])
        return _arrays(images, classes, rows)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise UserError(f"{path} has no {error}: is it COCO's instances_*.json?") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not an annotation file of COCO ({error}): unpack it again") from error


def _arrays(images: list[tuple[int, str]], classes: list[tuple[int, str]], rows: _Rows) -> Arrays:
    boxes = np.array(rows.boxes, dtype=np.float64).reshape(-1, 4)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    image = _positions(rows.images, [number for number, _ in images], "image_id")[kept]
    label = _positions(rows.categories, [number for number, _ in classes], "category_id")[kept]
    order = np.argsort(image, kind="stable")
    return {
        "files": np.array([name.encode("utf-8") for _, name in images]),
        "classes": np.array([name.encode("utf-8") for _, name in classes]),
        "boxes": boxes[kept][order].astype(np.float32),
        "labels": label[order],
        "ignore": np.array(rows.crowd, dtype=bool)[kept][order],
        "starts": np.searchsorted(image[order], np.arange(len(images) + 1)),
    }


def _positions(values: array[int], known: list[int], what: str) -> NDArray[np.int64]:
    """Where in ``known`` each of ``values`` is."""
    ids, wanted = np.array(known, dtype=np.int64), np.array(values, dtype=np.int64)
    order = np.argsort(ids)
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"an {what} is given twice")
    at = np.searchsorted(ids[order], wanted).clip(max=max(len(ids) - 1, 0))
    strange = wanted if len(ids) == 0 else wanted[ids[order][at] != wanted]
    if len(strange):
        raise ValueError(f"no {what} {strange[0]}")
    return order[at]
