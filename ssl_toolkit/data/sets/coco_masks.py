"""The masks of COCO's objects: polygons and run lengths of the annotations, all kept as run lengths."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ssl_toolkit.data.sets.coco_annotations import Order, Rows, explained, parsed
from ssl_toolkit.data.sets.packed import Arrays, cached_arrays, file_key
from ssl_toolkit.errors import UserError
from ssl_toolkit.progress import Bar, progress_bar

_FORMAT = "1"


def read_masks(path: Path) -> Arrays:
    """The masks of the objects in ``path``, made once and kept in the cache folder.

    Returns:
        ``runs`` uint8, pycocotools' compressed run lengths of the objects that `read_instances` keeps, in its order;
        those of object ``i`` are ``run_starts[i]`` to ``run_starts[i + 1]``. ``sizes`` ``(images, 2)``, height and
        width.

    Raises:
        UserError: the file cannot be read, or has an object without a mask.
    """
    return cached_arrays("coco", [f"masks {_FORMAT}", file_key(path)], lambda: _pack(path))


def decoded_masks(masks: Arrays, index: int, objects: slice) -> NDArray[np.bool_]:
    """The masks of ``objects``, ``(n, H, W)``, which are those of image ``index``, from what `read_masks` returned."""
    height, width = masks["sizes"][index].tolist()
    if objects.stop == objects.start:
        return np.zeros((0, height, width), dtype=bool)
    starts = masks["run_starts"][objects.start : objects.stop + 1].tolist()
    runs = [
        {"size": [height, width], "counts": masks["runs"][start:stop].tobytes()} for start, stop in pairwise(starts)
    ]
    return np.ascontiguousarray(coco_mask.decode(runs).transpose(2, 0, 1)).astype(bool)


class _MaskRows(Rows):
    """Annotations with their masks: the corners of all polygons in one array, run lengths as they are."""

    def __init__(self, bar: Bar) -> None:
        super().__init__(bar)
        self.ids = array("q")
        self.corners, self.polygon_ends, self.object_ends = array("d"), array("q"), array("q")
        self.runs: dict[int, dict[str, Any]] = {}
        self.strange: dict[int, str] = {}
        self.sizes: dict[int, tuple[int, int]] = {}

    def take(self, entry: dict[str, Any]) -> Any:
        if "counts" in entry:
            return entry
        if "file_name" in entry:
            self.sizes[entry["id"]] = int(entry["height"]), int(entry["width"])
        elif "image_id" in entry:
            self._take_mask(entry)
        return super().take(entry)

    def _take_mask(self, entry: dict[str, Any]) -> None:
        row = len(self.ids)
        self.ids.append(entry["id"])
        segmentation = entry.get("segmentation")
        if isinstance(segmentation, dict):
            self.runs[row] = segmentation
        else:
            try:
                self._take_polygons(segmentation or [])
            except (TypeError, ValueError) as error:
                self.strange[row] = str(error)
        self.object_ends.append(len(self.polygon_ends))

    def _take_polygons(self, polygons: Sequence[Sequence[float]]) -> None:
        for polygon in polygons:
            if len(polygon) % 2:
                raise ValueError(f"{len(polygon)} coordinates")
            corners = array("d", polygon)
            if not np.isfinite(corners).all():
                raise ValueError("a coordinate that is no number")
            if len(corners) >= 6:  # Detectron2, too, leaves out points and lines
                self.corners.extend(corners)
                self.polygon_ends.append(len(self.corners))

    def polygons(self, row: int) -> list[list[float]]:
        """Those of annotation ``row``, ``x0, y0, x1, y1, ...`` each."""
        first = self.object_ends[row - 1] if row else 0
        ends = self.polygon_ends[first : self.object_ends[row]].tolist()
        starts = [self.polygon_ends[first - 1] if first else 0, *ends[:-1]]
        return [self.corners[start:end].tolist() for start, end in zip(starts, ends)]

    def compressed(self, row: int) -> bytes:
        """The mask of annotation ``row`` as pycocotools' compressed run lengths.

        Raises:
            ValueError: it has none, or one that does not decode.
        """
        height, width = self.sizes[self.images[row]]
        if row in self.strange:
            raise ValueError(f"a polygon with {self.strange[row]}")
        if row in self.runs:
            counts = _counts(self.runs[row], height, width)
            run: dict[str, Any] = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            polygons = self.polygons(row)
            if not polygons:
                raise ValueError("no polygon of three corners or more")
            run = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return bytes(run["counts"])


def _counts(runs: dict[str, Any], height: int, width: int) -> list[int]:
    """Run lengths, checked: pycocotools reads memory that is not its own where they are too few."""
    size, counts = runs.get("size"), runs["counts"]
    if size != [height, width]:
        raise ValueError(f"run lengths of size {size} in an image of [{height}, {width}]")
    counts = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("run lengths that are none")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels, the image has {height * width}")
    return counts


def _uncompressed(text: str) -> list[int]:
    """Run lengths from pycocotools' string: 5 bits a character, from the third on differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts


def _pack(path: Path) -> Arrays:
    with explained(path):
        rows, order = parsed(path, _MaskRows)
        sizes = np.array([rows.sizes[number] for number, _ in order.images], dtype=np.int64).reshape(-1, 2)
    runs = _all_compressed(path, rows, order)
    return {
        "runs": np.frombuffer(b"".join(runs), dtype=np.uint8),
        "run_starts": np.cumsum([0, *map(len, runs)]),
        "sizes": sizes,
    }


def _all_compressed(path: Path, rows: _MaskRows, order: Order) -> list[bytes]:
    runs = []
    with progress_bar(f"masks of {path.name}", len(order.rows), "objects") as bar:
        for row in order.rows.tolist():
            try:
                runs.append(rows.compressed(row))
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{path}: the mask of annotation {rows.ids[row]} cannot be used ({error}): correct or remove it"
                ) from error
            bar.advance()
    return runs
