"""ImageNet-1k (Russakovsky et al. 2015), and any folder sorted like it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.decode import SUFFIXES
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import check_apart
from ssl_toolkit.data.sets.published import PublishedConfig, Source, read_lines, spread
from ssl_toolkit.errors import UserError, nearest
from ssl_toolkit.files import read_json
from ssl_toolkit.progress import track

_SOURCE = Source(
    title="ImageNet", inner="ILSVRC/Data/CLS-LOC", markers=("train",), url="https://image-net.org/download.php"
)
_WNID = re.compile(r"n\d{8}")


@dataclass
class ImageNetConfig(PublishedConfig):
    """Options of ImageNet.

    Attributes:
        root: folder that holds ``train`` and ``val``.
        subset: text file with one file name per line (``n01440764_10026.JPEG``) that restricts train, such as
            SimCLR's lists of 1% and 10%; None takes all. val and test do not depend on it.
    """

    subset: str | None = None


@DATASETS.register("imagenet", ImageNetConfig)
class ImageNet(FileDataset):
    """1.28 million training and 50,000 validation images in one folder per WordNet id.

    Splits: train is ``root/train``; val and test are both ``root/val``, for the publisher keeps the labels of the test
    images.

    Attributes:
        wnids: WordNet id of each class. ``classes`` are the first names in ``LOC_synset_mapping.txt`` or
            ``imagenet_class_index.json`` where ``root`` has one, else these ids.

    Raises:
        UserError: a folder is missing or not sorted by class, or the subset does not fit it.
    """

    def __init__(self, config: ImageNetConfig, split: str) -> None:
        self.name = "imagenet"
        self.config: ImageNetConfig = config
        self.split = split
        root = _SOURCE.folder(config.root)
        train = root / "train"
        check_apart(train, root / "val")
        self.wnids = class_folders(train)
        folder, present = train, self.wnids
        if split != "train":
            folder = root / "val"
            present = class_folders(folder, known=self.wnids)
        if split == "train" and config.subset is not None:
            files = read_subset(Path(config.subset).expanduser(), train, self.wnids)
        else:
            title = f"listing {folder.name} of {_SOURCE.title}"
            files = files_by_class(folder, track(present, title, len(present), "classes"))
        names = readable(self.wnids, (root, Path(str(config.root)).expanduser()))
        super().__init__(folder, files, classes=names, labels=labels_of(files, self.wnids))


def class_folders(folder: Path, known: Sequence[str] | None = None) -> list[str]:
    """Names of the class folders in ``folder``, sorted.

    Args:
        known: the classes of training, to which these must belong.

    Raises:
        UserError: there is none, with how to make them, or one that ``known`` lacks.
    """
    try:
        with os.scandir(folder) as entries:
            entry_list = list(entries)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; it should hold one folder per class") from error
    found = sorted(entry.name for entry in entry_list if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise UserError(_unsorted(folder, [entry.name for entry in entry_list]))
    strange = sorted(set(found) - set(known)) if known is not None else []
    if known is not None and strange:
        raise UserError(
            f"{folder} has the class folder {strange[0]!r}, which the training folder has not "
            f"({nearest(strange[0], known)})"
        )
    return found


def _unsorted(folder: Path, names: Sequence[str]) -> str:
    if any(name.lower().endswith(SUFFIXES) for name in names):
        return (
            f"the images in {folder} are in no class folders: sort them into {folder}/n01440764 and so on "
            f"(torchvision.datasets.ImageNet(ROOT, split='{folder.name}') does it from the official tars)"
        )
    if any(name.endswith(".tar") for name in names):
        return f"{folder} holds tar files: unpack each into a folder of its own name"
    return f"{folder} has no class folders, such as {folder}/n01440764"


def files_by_class(folder: Path, classes: Iterable[str]) -> list[str]:
    """Relative paths ``class/name`` of the images below ``folder``, sorted within each class.

    Raises:
        UserError: a folder cannot be read, or there is no image in any.
    """
    files: list[str] = []
    for name in classes:
        try:
            with os.scandir(folder / name) as entries:
                images = [e.name for e in entries if e.name[0] != "." and e.name.lower().endswith(SUFFIXES)]
        except OSError as error:
            raise UserError(f"cannot read {folder / name}: {error.strerror}") from error
        files += [f"{name}/{image}" for image in sorted(images)]
    if not files:
        raise UserError(f"no images in the class folders of {folder}")
    return files


def labels_of(files: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The position in ``classes`` of the folder of each file."""
    position = {name: number for number, name in enumerate(classes)}
    return [position[name.partition("/")[0]] for name in files]


def read_subset(path: Path, folder: Path, wnids: Sequence[str]) -> list[str]:
    """Relative paths ``n01440764/n01440764_10026.JPEG`` of the images that ``path`` names, in its order.

    Raises:
        UserError: the file cannot be read or is empty, or names an image twice, of no class, or that is not there.
    """
    known = set(wnids)
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip().rpartition("/")[2]
        if not name:
            continue
        if name.partition("_")[0] not in known:
            raise UserError(f"{path} line {number}: {name} is of none of the {len(wnids)} classes in {folder}")
        if name in first_line:
            raise UserError(f"{path} line {number}: {name} is also on line {first_line[name]}; remove one")
        first_line[name] = number
    if not first_line:
        raise UserError(f"data.subset={path} is empty: one file name per line, such as n01440764_10026.JPEG")
    files = [f"{name.partition('_')[0]}/{name}" for name in first_line]
    for at in spread(len(files)):
        if not (folder / files[at]).is_file():
            number = first_line[files[at].partition("/")[2]]
            raise UserError(f"{path} line {number}: there is no {folder / files[at]}")
    return files


def readable(wnids: Sequence[str], folders: Sequence[Path]) -> tuple[str, ...]:
    """The first name of each class, by the first mapping file found in ``folders``; the id where there is none.

    A name that two classes share (crane) has its id behind it.
    """
    names: dict[str, str] = {}
    for folder in folders:
        for file, read in (("LOC_synset_mapping.txt", _synsets), ("imagenet_class_index.json", _class_index)):
            if not names and (folder / file).is_file():
                names = read(folder / file)
    named = [names.get(wnid, wnid) for wnid in wnids]
    count = Counter(named)
    return tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(named, wnids))


def _synsets(path: Path) -> dict[str, str]:
    """Kaggle's mapping: lines such as ``n01440764 tench, Tinca tinca``."""
    names = {}
    for number, line in enumerate(read_lines(path), 1):
        wnid, _, words = line.strip().partition(" ")
        if line.strip() and not (_WNID.fullmatch(wnid) and words):
            raise UserError(f"{path} line {number}: expected 'n01440764 tench, Tinca tinca', not {line[:60]!r}")
        names[wnid] = words.split(",")[0].strip()
    return names


def _class_index(path: Path) -> dict[str, str]:
    """Keras's mapping: ``{"0": ["n01440764", "tench"], ...}``."""
    try:
        return {str(wnid): str(name).replace("_", " ") for wnid, name in read_json(path).values()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{path} is not {{"0": ["n01440764", "tench"], ...}}: replace or remove it') from error
