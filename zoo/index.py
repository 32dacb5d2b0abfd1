"""Published checkpoints by name: ``zoo/*.yaml``, and the YAML files of `OWN_ZOO`."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.registry import typed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN_ZOO = "SSL_TOOLKIT_ZOO"
"""Environment variable: a folder of YAML files with entries of one's own."""

PARTS = ("backbone", "full")
"""The files an entry can have: the backbone alone, and the checkpoint with its heads."""

TABLES = {
    "table1": "Table 1",
    "table2": "Table 2",
    "table8": "Table 8",
    "table9": "Table 9",
    "authors": "authors",
}
"""Where numbers stand: tables of the VICRegL paper, or what the authors of the weights say themselves."""

MEASURES = {
    "imagenet_linear": "ImageNet linear top-1",
    "voc_linear": "VOC linear mIoU",
    "voc_linear_finetuned": "VOC linear mIoU, fine-tuned",
    "cityscapes_linear": "Cityscapes linear mIoU",
    "ade20k_linear": "ADE20K linear mIoU",
    "voc_fcn": "VOC FCN mIoU",
    "voc_fcn_finetuned": "VOC FCN mIoU, fine-tuned",
    "voc_detection": "VOC linear AP",
    "voc_detection_finetuned": "VOC fine-tuned AP",
}
"""What was measured, in percent; the backbone is frozen unless it says otherwise."""

DIGITS = {"sha256": 64, "md5": 32}
HASH = re.compile(r"(sha256|md5):([0-9a-f]{6,64})")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
ALIAS = re.compile(r"[a-z0-9][a-z0-9._/-]*")


@dataclass
class FileSpec:
    """One file, as it stands in an entry.

    Attributes:
        url: its address; in a YAML of one's own also a path, relative to that YAML.
        format: the importer that reads it; null where nothing here does.
        hash: ``sha256:`` or ``md5:`` with all digits or the first ones, as published; null where nothing is published.
        name: of the file in the cache; null is the last part of the address.
        browser: whether the address answers with a page in which a person has to click.
        verified: whether the address was read in the authors' own page (no address was fetched).
    """

    url: str
    format: str | None = None
    hash: str | None = None
    name: str | None = None
    browser: bool = False
    verified: bool = True

    def __post_init__(self) -> None:
        if "://" in self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"url must start with https:// or http://, or be a path, not {self.url!r}")
        if self.hash is not None:
            found = HASH.fullmatch(self.hash)
            if found is None or len(found[2]) > DIGITS[found[1]]:
                raise ValueError(f"hash must be sha256: or md5: with 6 or more hexadecimal digits, not {self.hash!r}")


@dataclass
class ModelSpec:
    """One model of a YAML file.

    Attributes:
        arch: the name of the backbone.
        params: millions of parameters, as published.
        data: what it was trained on.
        epochs, alpha: of its training; null where nobody says or it has none.
        aliases: other names for it.
        files: of `PARTS`; empty where none is public.
        numbers: key of `TABLES` to key of `MEASURES` to percent.
        note: what a user should know.
    """

    arch: str
    params: float
    data: str = "ImageNet-1k"
    epochs: int | None = None
    alpha: float | None = None
    aliases: list[str] = field(default_factory=list)
    files: dict[str, FileSpec] = field(default_factory=dict)
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("file", self.files, PARTS),
            ("table", self.numbers, TABLES),
            ("number", [key for row in self.numbers.values() for key in row], MEASURES),
        ):
            for key in given:
                if key not in known:
                    raise ValueError(str(unknown(kind, key, known)))
        if wrong := [alias for alias in self.aliases if not ALIAS.fullmatch(alias)]:
            raise ValueError(f"an alias has small letters, digits and . _ - / alone, not {wrong[0]!r}")


@dataclass
class ZooSpec:
    """The keys of a YAML file: what its models share, and the models.

    Attributes:
        method, paper, source: what trained them, its paper, and where they are published.
        license: of the weights; null where none was found.
    """

    method: str
    paper: str
    source: str
    license: str | None = None
    models: dict[str, ModelSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := [name for name in self.models if not NAME.fullmatch(name)]:
            raise ValueError(f"a name has small letters, digits and . _ - alone, not {wrong[0]!r}")


@dataclass(frozen=True)
class Published:
    """A published checkpoint: a model of a YAML file with what its file says of all.

    Attributes:
        license: of the weights, or that none was found.
        files: by part, the backbone first.
    """

    name: str
    method: str
    paper: str
    source: str
    license: str
    arch: str
    params: float
    data: str
    epochs: int | None
    alpha: float | None
    aliases: tuple[str, ...]
    files: Mapping[str, FileSpec]
    numbers: Mapping[str, Mapping[str, float]]
    note: str

    def number(self, measure: str) -> tuple[float, str] | None:
        """The number of ``measure`` and the table it stands in, the paper's before the authors'."""
        for table in TABLES:
            if measure in self.numbers.get(table, {}):
                return self.numbers[table][measure], TABLES[table]
        return None

    def file(self, part: str | None = None) -> FileSpec:
        """The file of a part; None is the first that something here reads, else the first.

        Raises:
            UserError: it has no such file, or none at all.
        """
        if not self.files:
            raise UserError(
                f"{self.name} has no public file{f' ({self.note})' if self.note else ''}; see {self.source}"
            )
        if part is None:
            return next((file for file in self.files.values() if file.format), next(iter(self.files.values())))
        if part not in self.files:
            raise UserError(f"{self.name} has no file {part!r}: there is {' and '.join(self.files)}")
        return self.files[part]


def percent(value: float) -> str:
    """A published number with as many digits as it was published with, one at least."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"


def read_zoo_file(path: Any) -> dict[str, Published]:
    """The entries of a YAML file, every key and type checked.

    Raises:
        UserError: a key or value that `ZooSpec` does not allow.
    """
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except Exception as error:  # YAML and OmegaConf raise kinds of their own
        raise UserError(f"{path} is not readable YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no mapping: see the files of ssl_toolkit/zoo")
    spec: ZooSpec = typed(ZooSpec, plain, str(path))
    return {name: _entry(name, model, spec, path) for name, model in spec.models.items()}


def _entry(name: str, model: ModelSpec, spec: ZooSpec, path: Any) -> Published:
    files = {part: model.files[part] for part in PARTS if part in model.files}
    for file in files.values():
        if "://" not in file.url:
            file.url = str((Path(str(path)).parent / Path(file.url).expanduser()).absolute())
    return Published(
        name,
        spec.method,
        spec.paper,
        spec.source,
        spec.license or "none found",
        model.arch,
        model.params,
        model.data,
        model.epochs,
        model.alpha,
        tuple(model.aliases),
        files,
        model.numbers,
        model.note,
    )


@lru_cache
def _packaged() -> tuple[Published, ...]:
    """The entries of this package."""
    folder = resources.files("ssl_toolkit.zoo")
    return tuple(entry for path in _yamls(folder.iterdir()) for entry in read_zoo_file(path).values())


def _yamls(items: Iterator[Any]) -> list[Any]:
    return sorted((item for item in items if item.name.endswith(".yaml")), key=lambda item: item.name)


def zoo() -> dict[str, Published]:
    """All entries by name, this package's and those of the folder that `OWN_ZOO` names.

    Raises:
        UserError: that folder is none, one of its files is wrong, or a name or alias is there twice.
    """
    entries = list(_packaged())
    if own := os.environ.get(OWN_ZOO):
        if not Path(own).is_dir():
            raise UserError(f"{OWN_ZOO}={own} is not a folder")
        entries += [entry for path in _yamls(Path(own).iterdir()) for entry in read_zoo_file(path).values()]
    named: set[str] = set()
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            if name in named:
                raise UserError(f"the zoo has two entries named {name!r}")
            named.add(name)
    return {entry.name: entry for entry in entries}


def published(name: str) -> Published:
    """The entry of a name or alias; an unknown one is a `UserError` with the nearest names."""
    entries = zoo()
    found = next((entry for entry in entries.values() if name in (entry.name, *entry.aliases)), None)
    if found is None:
        raise unknown("zoo checkpoint", name, [*entries, *(a for entry in entries.values() for a in entry.aliases)])
    return found


def is_pattern(name: str) -> bool:
    """Whether a name stands for all that look like it."""
    return bool(set("*?[") & set(name))


def chosen(patterns: Sequence[str]) -> list[Published]:
    """The entries that names, aliases or patterns (``vicregl_*``) mean, each once; all of them for no pattern.

    Raises:
        UserError: a name that there is not, or a pattern that none has.
    """
    entries = zoo()
    if not patterns:
        return list(entries.values())
    found: dict[str, Published] = {}
    for pattern in patterns:
        if not is_pattern(pattern):
            entry = published(pattern)
            found[entry.name] = entry
            continue
        matching = [e for e in entries.values() if any(fnmatch.fnmatch(n, pattern) for n in (e.name, *e.aliases))]
        if not matching:
            raise UserError(f"no zoo checkpoint is named like {pattern!r}: see ssl-toolkit zoo list")
        found.update({entry.name: entry for entry in matching})
    return list(found.values())
