"""Data sets of Hugging Face's ``datasets`` package, from disk, from its cache, or from the hub where allowed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Image, LabelledImages
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.decode import decode_image, read_bytes
from ssl_toolkit.data.files import FileConfig
from ssl_toolkit.data.sets.published import check_fraction, numbered_classes, part_of_train, spread
from ssl_toolkit.errors import UserError, nearest


@dataclass
class HuggingFaceConfig(FileConfig):
    """Options of a data set of the ``datasets`` package.

    Attributes:
        path: its name on the hub, or a folder: of ``save_to_disk``, of parquet files, or of images.
        config_name: which of its configurations, where it has several.
        train_split: what to train on.
        val_split: what to validate on; None: a part of ``train_split`` is held out.
        test_split: what to report on; None: what val is.
        val_fraction: share of ``train_split`` held out where there is no ``val_split``.
        image_column: the column of images.
        label_column: the column of labels, or None for no labels.
        download: fetch it from the hub where it is not in the local cache. Nothing is ever fetched without this.
    """

    path: str | None = None
    config_name: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = None
    val_fraction: float = 0.1
    image_column: str = "image"
    label_column: str | None = "label"
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.val_fraction)
        if self.train_split in (self.val_split, self.test_split):
            raise ValueError(f"{self.train_split} is train_split and another split: evaluation needs other images")


@DATASETS.register("huggingface", HuggingFaceConfig)
class HuggingFace(LabelledImages):
    """Images that the ``datasets`` package has in its tables, decoded by this toolkit.

    Splits: train is ``train_split``; val is ``val_split``, or where there is none ``val_fraction`` of ``train_split``,
    chosen by a hash of the position, which train then lacks; test is ``test_split``, or val where there is none.

    Raises:
        UserError: the package or the data is missing, or a split or column is not there or of the wrong type.
    """

    def __init__(self, config: HuggingFaceConfig, split: str) -> None:
        if not config.path:
            raise UserError("data.path is not set: give a name on the hub or a folder with data.path=NAME")
        self.name = "huggingface"
        self.config: HuggingFaceConfig = config
        self.split = split
        self.in_channels = config.in_channels
        tables = load(config)
        self.part = _split_name(config, split)
        for name in filter(None, (config.val_split, config.test_split)):
            _choose(tables, name, config)
        table, train = _choose(tables, self.part, config), _choose(tables, config.train_split, config)
        kept = np.arange(len(table))
        if self.part == config.train_split and not (split == "train" and config.val_split):
            names = [str(number) for number in range(len(table))]
            kept = part_of_train(names, config.val_fraction, split, Path(config.path))
        self._kept = kept
        self._images = _image_column(table, config)
        if config.label_column is not None:
            self.classes = class_names(train, config)
            self.label_array = read_labels(table, self.classes, self.part, config)[kept]

    def __len__(self) -> int:
        return len(self._kept)

    def where(self, index: int) -> str:
        """Which image ``index`` is, for people."""
        return f"image {int(self._kept[index])} of {self.config.path} ({self.part})"

    def raw(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image ``index``.

        Raises:
            UserError: the table holds none, or the file that it names cannot be read.
        """
        value = self._images[int(self._kept[index])][self.config.image_column] or {}
        if value.get("bytes"):
            return np.frombuffer(bytearray(value["bytes"]), dtype=np.uint8)
        path = value.get("path")
        if not path or "://" in path:
            raise UserError(f"{self.where(index)} is empty: remove that row")
        return read_bytes(Path(path))

    def image(self, index: int) -> Image:
        return decode_image(self.raw(index), self.where(index), self.in_channels, self.config.bits)

    def encoded(self, index: int) -> NDArray[np.uint8] | None:
        return self.raw(index) if self.in_channels == 3 and self.config.bits == 8 else None

    def fingerprint(self) -> str:
        """A hash of which images are in the split, and of a few of them."""
        digest = hashlib.blake2b(self._kept.tobytes(), digest_size=8)
        for index in spread(len(self)):
            digest.update(self.raw(index).data)
        return digest.hexdigest()


def _split_name(config: HuggingFaceConfig, split: str) -> str:
    if split == "test" and config.test_split:
        return config.test_split
    return config.val_split if split != "train" and config.val_split else config.train_split


@contextmanager
def _offline(really: bool) -> Iterator[None]:
    """Nothing is fetched inside: both packages decide by these, and take no argument for it."""
    import datasets
    import huggingface_hub.constants

    places: list[Any] = [datasets.config, huggingface_hub.constants] if really else []
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before):
            place.HF_HUB_OFFLINE = value


def load(config: HuggingFaceConfig) -> dict[str, Any]:
    """The tables of all splits.

    Raises:
        UserError: the package is missing, or the data cannot be found or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data=huggingface needs the datasets package: pip install 'ssl-toolkit[hf]'") from error
    path = str(config.path)
    if Path(path).expanduser().exists():
        path = str(Path(path).expanduser())
    if not config.download and ("://" in path or _card_points_elsewhere(Path(path))):
        raise UserError(f"data.path={config.path} is not on this machine: data.download=true fetches it")
    saved = any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and config.config_name:
        raise UserError(
            f"data.config_name={config.config_name}: {path} is of save_to_disk, which keeps one: leave it out"
        )
    try:
        with _offline(not config.download):
            found = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, config.config_name)
    except Exception as error:  # a dozen kinds, most of them of the package's own
        cause = error.__cause__ or error  # the package's own words for it are "An error occurred"
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:200]
        hint = "" if config.download or Path(path).exists() else "; data.download=true fetches it from the hub"
        raise UserError(f"cannot load data.path={config.path} ({reason}){hint}") from error
    return dict(found) if isinstance(found, dict) else {config.train_split: found}


def _card_points_elsewhere(folder: Path) -> bool:
    """Whether the data files of a folder are, by its card, on other machines, where the package would look for them."""
    import yaml

    for name in ("README.md", ".huggingface.yaml"):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            parts = text.split("---", 2) if name == "README.md" else ["", text]
            try:
                card = yaml.safe_load(parts[1]) if parts[0] == "" and len(parts) > 1 else None
            except yaml.YAMLError:
                card = None  # the package says what is wrong with it
            if isinstance(card, dict) and "://" in str(card.get("configs")):
                return True
    return False


def _choose(tables: dict[str, Any], name: str, config: HuggingFaceConfig) -> Any:
    if name not in tables:
        raise UserError(f"{config.path} has no split {name!r}: {nearest(name, tables)}")
    if len(tables[name]) == 0:
        raise UserError(f"the split {name!r} of {config.path} is empty")
    return tables[name]


def _column(table: Any, option: str, config: HuggingFaceConfig) -> str:
    name = str(getattr(config, option))
    if name not in table.column_names:
        hint = " (data.label_column=null for none)" if option == "label_column" else ""
        raise UserError(
            f"{config.path} has no column {name!r}: {nearest(name, table.column_names)}; data.{option}{hint}"
        )
    return name


def _image_column(table: Any, config: HuggingFaceConfig) -> Any:
    """The column of images, as files: the package would decode one that is cut short to half an image."""
    import datasets

    name = _column(table, "image_column", config)
    if not isinstance(table.features[name], datasets.Image):
        images = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
        raise UserError(f"the column {name!r} of {config.path} is not of images; of those it has {images or 'none'}")
    return table.select_columns([name]).cast_column(name, datasets.Image(decode=False))


def class_names(train: Any, config: HuggingFaceConfig) -> tuple[str, ...]:
    """The classes of the training split: the names that the table has, the words in it sorted, or numbers from 0.

    Raises:
        UserError: there is no such column, or it holds neither words nor whole numbers.
    """
    name = _column(train, "label_column", config)
    names = getattr(train.features[name], "names", None)
    if names:
        return tuple(map(str, names))
    values = _values(train, name)
    if values.dtype.kind in "iu":
        return numbered_classes(values, f"the column {name!r} of {config.path}")
    if values.dtype.kind == "U":
        return tuple(sorted(set(values.tolist())))
    raise UserError(
        f"the column {name!r} of {config.path} holds not a number or word in each row: set data.label_column=null"
    )


def read_labels(table: Any, classes: tuple[str, ...], part: str, config: HuggingFaceConfig) -> NDArray[np.int64]:
    """``(N,)`` positions in ``classes``.

    Raises:
        UserError: a label is missing, or none of ``classes``.
    """
    name = _column(table, "label_column", config)
    values, own = _values(table, name), getattr(table.features[name], "names", None)
    if own and tuple(own) != classes and values.dtype.kind in "iu":  # numbered otherwise than in training: by name then
        values = np.array([own[value] if 0 <= value < len(own) else str(value) for value in values.tolist()])
    if values.dtype.kind == "U":
        number = {name: position for position, name in enumerate(classes)}
        labels = np.array([number.get(value, -1) for value in values.tolist()], dtype=np.int64)
    else:
        labels = values.astype(np.int64) if values.dtype.kind in "iu" else np.full(len(values), -1)
    strange = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(strange):
        raise UserError(
            f"the split {part!r} of {config.path} has the label {values[strange[0]]!s} (row {strange[0]}), none of the "
            f"{len(classes)} classes of {config.train_split!r}: choose another split or data.label_column"
        )
    return labels


def _values(table: Any, name: str) -> NDArray[Any]:
    """The column of labels: an array of whole numbers or of words, or of None where it is neither in every row."""
    from pyarrow import types

    column = table.select_columns([name]).with_format("arrow")[:][name]
    fits = (types.is_integer, types.is_string, types.is_large_string)
    if column.null_count or not any(check(column.type) for check in fits):
        return np.full(len(column), None)
    return np.array(column.to_pylist())
