"""The file of annotations of COCO, read into arrays."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.sets.packed import Arrays, cached_arrays, file_key
from ssl_toolkit.errors import UserError
from ssl_toolkit.progress import Bar, progress_bar

_FORMAT = "1"


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


class Rows:
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


R = TypeVar("R", bound=Rows)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of reading annotations as `UserError` that name the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise UserError(f"{path} has no {error}: is it COCO's instances_*.json?") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not an annotation file of COCO ({error}): unpack it again") from error


class Order(NamedTuple):
    """Which annotations are kept, sorted by image.

    Attributes:
        images: ``(id, file name)`` of all, in order.
        classes: ``(id, name)`` of all, in order.
        rows: ``(m,)``, positions in the file of the annotations whose box has an area.
        image, label: ``(m,)``, positions in ``images`` and ``classes`` of each.
    """

    images: list[tuple[int, str]]
    classes: list[tuple[int, str]]
    rows: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]


def parsed(path: Path, make: Callable[[Bar], R]) -> tuple[R, Order]:
    """What ``make`` keeps of the annotations in ``path``, and their order; errors are for `explained`."""
    text = path.read_text(encoding="utf-8")
    with progress_bar(f"reading {path.name}", text.count('"image_id"'), "objects") as bar:
        rows = make(bar)
        top = json.loads(text, object_hook=rows.take)
    images: list[tuple[int, str]] = sorted(top["images"], key=lambda row: row[1])
    classes = sorted((int(entry["id"]), str(entry["name"])) for entry in top["categories"])
    boxes = _corners(rows)
    kept = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    image = _positions(rows.images, [number for number, _ in images], "image_id")[kept]
    label = _positions(rows.categories, [number for number, _ in classes], "category_id")[kept]
    order = np.argsort(image, kind="stable")
    return rows, Order(images, classes, kept[order], image[order], label[order])


def _corners(rows: Rows) -> NDArray[np.float64]:
    return np.array(rows.boxes, dtype=np.float64).reshape(-1, 4)


def _pack(path: Path) -> Arrays:
    with explained(path):
        rows, order = parsed(path, Rows)
        return {
            "files": np.array([name.encode("utf-8") for _, name in order.images]),
            "classes": np.array([name.encode("utf-8") for _, name in order.classes]),
            "boxes": _corners(rows)[order.rows].astype(np.float32),
            "labels": order.label,
            "ignore": np.array(rows.crowd, dtype=bool)[order.rows],
            "starts": np.searchsorted(order.image, np.arange(len(order.images) + 1)),
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
