"""The backbone of a published checkpoint."""

from __future__ import annotations

from pathlib import Path

from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo.importers import FORMATS, Imported, load_checkpoint
from ssl_toolkit.zoo.index import Published


def loadable(entry: Published, part: str | None = None) -> str:
    """Why the file of an entry cannot be loaded here; empty where it can."""
    try:
        file = entry.file(part)
    except UserError as error:
        return str(error)
    if file.format is None:
        return f"nothing here reads its file{f' ({entry.note})' if entry.note else ''}"
    return "" if file.format in FORMATS else f"there is no importer of {file.format} files"


def load_published(entry: Published, path: Path, part: str | None = None) -> Imported:
    """The backbone in the file of an entry, its heads and preprocessing.

    Args:
        path: where the file lies, see `zoo_file`.
        part: which file of the entry it is; None is the first that can be loaded.

    Raises:
        UserError: nothing here reads that format, or the file is not what the entry says.
    """
    if why := loadable(entry, part):
        raise UserError(f"zoo checkpoint {entry.name}: {why}")
    return load_checkpoint(path, format=entry.file(part).format, arch=entry.arch)
