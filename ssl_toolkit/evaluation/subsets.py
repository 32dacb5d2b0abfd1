"""Training on a part of the labels: n images of each class, a share of each class, or those that a list names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.errors import UserError


@dataclass
class LabelsConfig:
    """Which training images have labels; at most one of the first three, none of them takes all images.

    Attributes:
        shots: images of each class.
        fraction: share of the images of each class, rounded to whole images, one at least.
        list: text file with a file name on each line, such as SimCLR's ``1percent.txt`` for ImageNet.
        seed: of ``shots`` and ``fraction``. Of one seed, what is smaller is part of what is larger.
    """

    shots: int | None = None
    fraction: float | None = None
    list: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.shots, self.fraction, self.list)) > 1:
            raise ValueError("labels: give one of shots, fraction and list")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"labels.shots must be 1 or more, not {self.shots}")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"labels.fraction must be between 0 and 1, not {self.fraction}")
        if self.seed < 0:
            raise ValueError(f"labels.seed must not be negative, not {self.seed}")

    @property
    def variant(self) -> str:
        """``5shot``, ``10pct`` or the list's name; empty for all images."""
        if self.shots is not None:
            return f"{self.shots}shot"
        if self.fraction is not None:
            return f"{100 * self.fraction:g}pct"
        return Path(self.list).stem if self.list is not None else ""


@dataclass(frozen=True)
class Labelled:
    """The training images that have labels.

    Attributes:
        rows: ``(n,)`` int64, their positions in the data set, rising.
        labels: ``(n,)`` int64, their classes.
        details: what a result says of them: nothing where they are all images.
        notes: what a reader of the result should know.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    details: dict[str, Any]
    notes: Sequence[str] = ()


def labelled(config: LabelsConfig, dataset: ImageDataset) -> Labelled:
    """The images of ``dataset`` that ``config`` chooses; the same on every machine.

    Raises:
        UserError: a list that cannot be read, names an unknown image or one twice, or is of images without names.
    """
    labels = dataset.labels()
    notes: Sequence[str] = ()
    if config.list is not None:
        rows = _listed(Path(config.list).expanduser(), dataset)
    elif config.shots is not None or config.fraction is not None:
        rows, notes = _drawn(config, labels)
    else:
        return Labelled(np.arange(len(labels)), labels, {})
    details = {
        "images": len(rows),
        "of": len(labels),
        "classes": len(np.unique(labels[rows])),
        "sha256": hashlib.sha256("\n".join(map(str, rows.tolist())).encode()).hexdigest(),
    }
    return Labelled(rows, labels[rows], {"labels": details}, notes)


def _drawn(config: LabelsConfig, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Of each class the images with the smallest random numbers, so that smaller parts lie in larger ones."""
    # The numbers themselves are the same with every version of numpy; what is made of them need not be.
    numbers = np.random.Philox(key=config.seed).random_raw(len(labels))
    order = np.lexsort((numbers, labels))
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    parts, few = [], 0
    for start, count in zip(starts.tolist(), counts.tolist()):
        wanted = config.shots if config.shots is not None else max(1, int((config.fraction or 0) * count + 0.5))
        few += wanted > count
        parts.append(order[start : start + wanted][:count])
    notes = [f"{few} of {len(classes)} classes have fewer than {config.shots} training images"] if few else []
    return np.sort(np.concatenate(parts)), notes


def _listed(path: Path, dataset: ImageDataset) -> NDArray[np.int64]:
    """Positions of the images that a file names, by their path below the folder of images or by its last part."""
    if not isinstance(dataset, FileDataset):
        raise UserError(
            f"labels.list={path} names files, and the images of {dataset.name} have no names: "
            "use labels.shots or labels.fraction"
        )
    known = _positions(dataset)
    first: dict[int, int] = {}
    for number, line in enumerate(_lines(path), 1):
        name = line.strip().removeprefix("./")
        if not name:
            continue
        where = f"{path} line {number}: {name}"
        position = known.get(name, known.get(name.rpartition("/")[2]))
        if position is None:
            raise UserError(f"{where} is not one of the {len(dataset)} training images in {dataset.folder}")
        if position < 0:
            raise UserError(f"{where} is the name of several images: write the path below {dataset.folder}")
        if position in first:
            raise UserError(f"{where} is also on line {first[position]}; remove one")
        first[position] = number
    if not first:
        raise UserError(f"labels.list={path} is empty: one file name per line, such as n01440764_10026.JPEG")
    return np.array(sorted(first), dtype=np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read labels.list={path}: {getattr(error, 'strerror', None) or error}") from error


def _positions(dataset: FileDataset) -> dict[str, int]:
    """The position of each image by its path, and by its file name; -1 where several have it."""
    names: dict[str, int] = {}
    paths: dict[str, int] = {}
    for position in range(len(dataset)):
        path = dataset.relative(position)
        paths[path] = position
        name = path.rpartition("/")[2]
        names[name] = -1 if name in names else position
    return names | paths
