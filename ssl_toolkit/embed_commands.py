"""``ssl-toolkit embed``: features of images, in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.embedding import EmbedOptions, find_all
from ssl_toolkit.embedding import embed as embed_images
from ssl_toolkit.embedding.files import check_out
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision
from ssl_toolkit.loading import open_source
from ssl_toolkit.registry import typed

DTYPES = ("float32", "float16")
UNREADABLE = ("skip", "refuse")
MOST_WORKERS = 8


@dataclass
class EmbedConfig:
    """The keys of ``configs/embed.yaml``, but for ``backbone``; see there."""

    run: str | None = None
    checkpoint: str | None = None
    zoo: str | None = None
    out: str = "features.npz"
    local: bool = False
    dtype: str = "float32"
    size: int | None = None
    resize: int | None = None
    unreadable: str = "skip"
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 128
    workers: int | None = None
    part: int = 512

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, not {self.dtype!r}")
        if self.unreadable not in UNREADABLE:
            raise ValueError(f"unreadable must be {' or '.join(UNREADABLE)}, not {self.unreadable!r}")
        for key in ("size", "resize", "batch_size", "part"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be 1 or more, not {value}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be 0 or more, not {self.workers}")


def embed(images: str, overrides: Sequence[str], out: str | None, console: Console) -> int:
    """``ssl-toolkit embed IMAGES run=... [--out FILE]``."""
    if "=" in images and not Path(images).exists():
        raise UserError(f"name the images first: ssl-toolkit embed photos {images}")
    given = [*overrides, *([] if out is None else [override_of("out", out)])]
    config = compose_config("embed", given)
    chosen = typed(EmbedConfig, {str(k): v for k, v in config.items() if k != "backbone"}, "embed")
    target = Path(chosen.out).expanduser()
    check_out(target)
    device = pick_device(chosen.device)
    precision = pick_precision(chosen.precision, device)
    found = find_all(images)
    source, preprocess = open_source(config, chosen.size, chosen.resize)
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if chosen.workers is None else chosen.workers
    options = EmbedOptions(
        device,
        precision,
        chosen.local,
        chosen.dtype,
        chosen.unreadable == "skip",
        chosen.batch_size,
        chosen.part,
        workers,
    )
    _say(console, f"{len(found):,} images of {images}, {source.name} at {preprocess.size} px")
    _say(console, f"device   {describe_hardware(device, precision)}")
    try:
        result = embed_images(source, preprocess, found, target, options, console)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"stopped; the same command goes on from {target}.parts") from stopped
    shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in result.shapes.items())
    left = f"; {len(result.unreadable)} unreadable left out" if result.unreadable else ""
    _say(console, f"written  {result.out} ({result.rows:,} images: {shapes}{left})")
    return 0


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
