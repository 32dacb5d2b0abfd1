"""Joining parts to one ``.npz`` or ``.parquet``, part by part, so that memory holds one of them."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.embedding.parts import Part
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path

FILE, METADATA = "file", "metadata"
SCHEMA_KEY = "ssl_toolkit"
"""Key of the metadata in a Parquet schema."""

Parted = Callable[[], Iterator[Part]]
"""The parts in order, as often as they are asked for."""

Shapes = Mapping[str, tuple[int, ...]]
"""What is kept of an image, by column."""


def check_out(out: Path) -> None:
    """Raise a UserError where ``out`` is no file that can be written here, before any work."""
    if out.suffix not in WRITERS:
        raise UserError(f"out={out}: name a {' or '.join(WRITERS)} file")
    if out.is_dir():
        raise UserError(f"out={out} is a folder: name a file")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError("writing .parquet needs pyarrow: pip install 'ssl-toolkit[parquet]', or name a .npz file")


def write_npz(out: Path, parts: Parted, names: Sequence[str], shapes: Shapes, dtype: np.dtype[Any], about: str) -> None:
    """Arrays ``file`` (text), one for each of ``shapes`` and ``metadata`` (JSON), as `numpy.load` reads them."""
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, value in ((FILE, np.array(names, dtype=str)), (METADATA, np.array(about))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (len(names), *shape)}
                np.lib.format.write_array_header_2_0(member, header)
                for part in parts():
                    if len(part.rows):
                        member.write(np.ascontiguousarray(part.values[name], dtype).data)


def write_parquet(
    out: Path, parts: Parted, names: Sequence[str], shapes: Shapes, dtype: np.dtype[Any], about: str
) -> None:
    """Columns ``file`` and one for each of ``shapes``, lists of fixed length; maps are flattened as (C, H, W).

    The JSON of ``metadata`` lies in the schema's metadata under `SCHEMA_KEY`.
    """
    import pyarrow
    from pyarrow import parquet

    number = pyarrow.from_numpy_dtype(dtype)
    fields = [pyarrow.field(FILE, pyarrow.string())]
    fields += [pyarrow.field(name, pyarrow.list_(number, int(np.prod(shape)))) for name, shape in shapes.items()]
    schema = pyarrow.schema(fields, metadata={SCHEMA_KEY: about})
    start = 0
    with atomic_path(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for part in parts():
            stop = start + len(part.rows)
            if stop > start:
                columns = [pyarrow.array(names[start:stop], pyarrow.string())]
                columns += [_column(pyarrow, part.values[name], dtype) for name in shapes]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
            start = stop


def _column(pyarrow: Any, values: NDArray[Any], dtype: np.dtype[Any]) -> Any:
    flat = np.ascontiguousarray(values, dtype).reshape(len(values), -1)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.reshape(-1)), flat.shape[1])


WRITERS = {".npz": write_npz, ".parquet": write_parquet}


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file says of its features: backbone, preprocessing, shapes, unreadable images."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return dict(json.loads(parquet.read_schema(path).metadata[SCHEMA_KEY.encode()]))
    with np.load(path, allow_pickle=False) as file:
        return dict(json.loads(str(file[METADATA])))
