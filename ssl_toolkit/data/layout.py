"""How a folder of images is read: which files belong to a split, and which classes the folders name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_toolkit.data.base import SPLITS
from ssl_toolkit.data.decode import ARRAY_SUFFIX, SUFFIXES
from ssl_toolkit.errors import UserError, nearest

LABEL_MODES = ("auto", "none", "folders")

_OTHER_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
"""Of split folders, as others call them, in lower case."""


@dataclass(frozen=True)
class Part:
    """The files of one split.

    Attributes:
        folder: what ``files`` are relative to.
        files: relative paths with ``/``, sorted.
        classes: class names, or None where there are no labels.
    """

    folder: Path
    files: list[str]
    classes: tuple[str, ...] | None


def find_images(folder: Path, skip: Path | None = None) -> list[str]:
    """Relative paths (with ``/``) of all images under ``folder``, sorted, the hidden ones left out.

    Links to folders are followed, except back into a folder that holds them. Where there is no image, ``.npy`` files
    are the images; beside images they are more likely labels or features.

    Args:
        skip: a resolved folder that is left out (the masks, when they lie among the images).
    """

    def stop(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    found, arrays = [], []
    for where, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        here = Path(where)
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(here / name, folder)]
        if skip is not None:
            folders[:] = [name for name in folders if (here / name).resolve() != skip]
        prefix = "" if here == folder else here.relative_to(folder).as_posix() + "/"
        names = [name for name in names if name[0] != "."]
        found += [prefix + name for name in names if name.lower().endswith(SUFFIXES)]
        arrays += [prefix + name for name in names if name.lower().endswith(ARRAY_SUFFIX)]
    return sorted(found or arrays)


def _leads_back(folder: Path, top: Path) -> bool:
    """Whether ``folder``, found below ``top``, is a link to a folder that leads to it, itself through links perhaps."""
    if not folder.is_symlink():
        return False
    target, way = folder.resolve(), folder.parent
    while not way.resolve().is_relative_to(target):
        if way == top:
            return False
        way = way.parent
    return True


def split_folders(root: Path, skip: Path | None = None) -> list[str]:
    """Which of ``train``, ``val``, ``test`` are split folders of ``root``.

    They are where at least two of them exist or nothing else does: a lone ``train/`` between ``bus/`` and
    ``car/`` is a class.
    """
    folders = set(_folders(root, skip))
    splits = [name for name in SPLITS if name in folders]
    return splits if len(splits) >= 2 or folders == set(splits) else []


def _folders(root: Path, skip: Path | None) -> list[str]:
    """Names of the folders in ``root``, sorted, but for hidden ones and ``skip``."""
    with os.scandir(root) as entries:  # looks no file up
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if (root / name).resolve() != skip]


def _misnamed(root: Path, skip: Path | None) -> dict[str, str]:
    """Folders of ``root`` that seem to be splits by another name (``Train``, ``valid``), with the right name.

    There are none where a single folder looks like a split: it is a class.
    """
    right = {name: _OTHER_NAMES.get(name.lower(), name.lower()) for name in _folders(root, skip)}
    right = {name: split for name, split in right.items() if split in SPLITS}
    return {name: split for name, split in right.items() if name != split} if len(right) >= 2 else {}


def check_apart(train: Path, other: Path) -> None:
    """Raise a UserError if the folders ``train`` and ``other`` are one, or one holds the other."""
    one, two = train.resolve(), other.resolve()
    if two.is_relative_to(one) or one.is_relative_to(two):
        raise UserError(f"{other} and {train} hold the same images: evaluation needs others")


def held_out(files: Sequence[str], share: float) -> set[str]:
    """The files that validate: those whose name hashes below ``share``; at least one, unless ``share`` is 0.

    Whether a file is held out depends on its own relative path alone, so that adding files moves none.
    """
    if share == 0 or not files:
        return set()
    value = {name: _unit_hash(name) for name in files}
    return {name for name in files if value[name] < share} or {min(files, key=value.__getitem__)}


def _unit_hash(name: str) -> float:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _classes(folder: Path, files: Sequence[str], mode: str, known: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Class names by the first folder of each file; ``known`` are those of the training folder."""
    if mode == "none":
        return None
    at_root = next((name for name in files if "/" not in name), None)
    names = tuple(sorted({name.split("/", 1)[0] for name in files if "/" in name}))
    if mode == "auto" and (at_root or not (len(names) >= 2 or set(names) <= set(known or ()))):
        return None
    if at_root:
        raise UserError(f"{folder / at_root} lies in no class folder: move it, or set data.labels=none")
    strange = sorted(set(names) - set(known)) if known else []
    if known and strange:
        raise UserError(
            f"{folder} has the class folder {strange[0]!r}, which the training folder has not "
            f"({nearest(strange[0], known)}); data.labels=none reads it without labels"
        )
    return known or names


class Layout:
    """The splits of a folder.

    Args:
        root: holds ``train``, ``val``, ``test`` folders, or the images themselves.
        labels: ``auto``, ``none`` or ``folders``.
        val_fraction: share of the training images held out where there is no ``val`` folder.
        skip: a folder inside ``root`` that holds no images (the masks).

    Raises:
        UserError: no such folder, the training folder overlaps another split's, or splits go by other names.
    """

    def __init__(self, root: Path, labels: str, val_fraction: float, skip: Path | None = None) -> None:
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise UserError(f"data.root={root} {what}: give the folder of the images with data.root=PATH")
        self.root, self.labels, self.val_fraction = root, labels, val_fraction
        self.skip = skip.resolve() if skip is not None else None
        try:
            self.splits = split_folders(root, self.skip)
            misnamed = _misnamed(root, self.skip)
        except OSError as error:
            raise UserError(f"cannot read data.root={root}: {error.strerror}") from error
        if misnamed and (self.splits or labels != "folders"):
            name, split = next(iter(misnamed.items()))
            hint = "" if self.splits else ", or take the folders for classes with data.labels=folders"
            raise UserError(f"{root / name} looks like a split, which are train, val, test: rename it to {split}{hint}")
        if "train" in self.splits:
            for other in set(self.splits) - {"train"}:
                check_apart(root / "train", root / other)

    def part(self, split: str) -> Part:
        """The files and classes of ``split``.

        Raises:
            UserError: there is no such split, no image in it, or its class folders are not those of training.
        """
        if not self.splits:
            return self._share(self._whole(self.root), split)
        holds_out = "train" in self.splits and "val" not in self.splits
        if holds_out and not (split == "test" and "test" in self.splits):
            return self._share(self._whole(self.root / "train"), split)
        if split == "test" and {"train", "val"} == set(self.splits):
            split = "val"  # as in ImageNet's layout: what there is to report on
        return self._folder(split)

    def _folder(self, split: str) -> Part:
        if split not in self.splits:
            there = ", ".join(f"{name}/" for name in self.splits)
            raise UserError(f"no {split}/ in {self.root}, which has {there}: choose one of those or add it")
        trained = split != "train" and "train" in self.splits
        known = self._whole(self.root / "train").classes if trained else None
        return self._whole(self.root / split, known)

    def _whole(self, folder: Path, known: tuple[str, ...] | None = None) -> Part:
        files = find_images(folder, self.skip)
        if not files:
            raise UserError(f"no images in {folder} or below (looked for {' '.join((*SUFFIXES, ARRAY_SUFFIX))})")
        return Part(folder, files, _classes(folder, files, self.labels, known))

    def _share(self, whole: Part, split: str) -> Part:
        """The held-out images for val and test, the rest for train."""
        out = held_out(whole.files, self.val_fraction)
        files = [name for name in whole.files if (name in out) == (split != "train")]
        if not files:
            raise UserError(
                f"{whole.folder} has {len(whole.files)} images and data.val_fraction={self.val_fraction} "
                f"leaves none for {split}: change it or add a {split}/ folder"
            )
        return Part(whole.folder, files, whole.classes)
