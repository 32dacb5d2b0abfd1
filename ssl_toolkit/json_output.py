"""``--json``: one JSON value on standard output, and everything else on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

Emit = Callable[[Any], None]
"""What a command hands its value to where JSON is asked for."""


@contextmanager
def json_only() -> Iterator[Emit]:
    """Keep standard output for JSON: what is printed in the block goes to standard error, but for what is emitted."""
    out = sys.stdout

    def emit(value: Any) -> None:
        print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False), file=out, flush=True)

    with redirect_stdout(sys.stderr):
        yield emit


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses as objects, paths as text, and null for what is no finite number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence):
        return [plain(each) for each in value]
    return str(value)
