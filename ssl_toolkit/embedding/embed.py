"""From images to a file of features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ssl_toolkit import __version__
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.embedding.files import WRITERS, check_out
from ssl_toolkit.embedding.images import Images
from ssl_toolkit.embedding.parts import Part, Parts
from ssl_toolkit.embedding.reading import Batch, read
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Source
from ssl_toolkit.evaluation.features import MAPS, POOLED, evaluating, features_of
from ssl_toolkit.evaluation.store import Lock
from ssl_toolkit.progress import Bar, progress_bar

FEATURES = "features"


@dataclass(frozen=True)
class EmbedOptions:
    """How features are computed and kept.

    Attributes:
        local: keep maps ``(C, H, W)`` too.
        dtype: of the numbers in the file, ``float32`` or ``float16``.
        skip: leave unreadable images out, naming them; else the first one is an error.
        batch_size: images of a forward pass.
        part: images that are kept at once; what was computed since is lost when it is stopped.
        workers: processes that read images.
    """

    device: torch.device
    precision: torch.dtype
    local: bool = False
    dtype: str = "float32"
    skip: bool = True
    batch_size: int = 128
    part: int = 512
    workers: int = 0


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        rows: images in the file.
        unreadable: name and reason of those left out.
        shapes: of what is kept of an image.
    """

    out: Path
    rows: int
    unreadable: list[tuple[str, str]]
    shapes: dict[str, tuple[int, ...]]


def embed(
    source: Source, preprocess: Preprocess, images: Images, out: Path, options: EmbedOptions, console: Console
) -> Embedded:
    """Write the features of ``images``, in their order, to ``out``; go on where parts of it are there already.

    Raises:
        UserError: a file that cannot be written, parts of another embedding, an unreadable image where those are not
            skipped or all are unreadable, or features that are not finite or beyond float16.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(out.with_name(f".{out.name}.lock"))
    if not lock.taken():
        raise UserError(f"another embed writes {out}: wait for it, or choose another out")
    try:
        parts = Parts(out, _identity(source, preprocess, images, options), len(images), options.part)
        _compute(source, preprocess, images, parts, options, console)
        result = _join(source, preprocess, images, out, parts, options)
        parts.remove()
        return result
    finally:
        lock.release()
        out.with_name(f".{out.name}.lock").unlink(missing_ok=True)


def _identity(source: Source, preprocess: Preprocess, images: Images, options: EmbedOptions) -> dict[str, Any]:
    return {
        "weights": source.weights_digest(),
        "images": images.digest(),
        "preprocessing": preprocess.stored(),
        "precision": str(options.precision),
        "dtype": options.dtype,
        "local": options.local,
        "skip": options.skip,
    }


def _compute(
    source: Source, preprocess: Preprocess, images: Images, parts: Parts, options: EmbedOptions, console: Console
) -> None:
    """Do the parts that are missing."""
    batches: list[range] = []
    completed: list[int | None] = []  # the part that a batch completes
    for missing in parts.missing():
        rows = parts.stretches[missing]
        cut = [rows[start : start + options.batch_size] for start in range(0, len(rows), options.batch_size)]
        batches += cut
        completed += [*[None] * (len(cut) - 1), missing]
    done = parts.rows_done()
    if done:
        console.print(f"going on after {done:,} of {len(images):,} images", highlight=False)
    backbone = source.backbone.to(options.device)
    found: list[tuple[Batch, dict[str, np.ndarray]]] = []
    reading = read(images, batches, preprocess, workers=options.workers, device=options.device)
    with evaluating(backbone), progress_bar("features", len(images), done=done, console=console) as bar:
        for batch, number in zip(reading, completed):
            _tell(batch, options, bar)
            found.append((batch, _features(source, preprocess, batch, images, options)))
            if number is not None:
                parts.write(number, _joined(found))
                found = []
            bar.advance(len(batch.rows) + len(batch.unreadable))


def _tell(batch: Batch, options: EmbedOptions, bar: Bar) -> None:
    """Name the unreadable images of a batch."""
    for _, reason in batch.unreadable:
        if not options.skip:
            raise UserError(f"{reason}; unreadable=skip leaves such images out")
        bar.log(f"left out: {reason}")


def _features(
    source: Source, preprocess: Preprocess, batch: Batch, images: Images, options: EmbedOptions
) -> dict[str, np.ndarray]:
    """``features`` and ``maps`` of a batch, in the dtype of the file."""
    if batch.pixels is None:
        return {}
    given = preprocess.normalise(batch.pixels.to(options.device, non_blocking=True))
    wanted = {POOLED, MAPS} if options.local else {POOLED}
    values = features_of(source.backbone, given, wanted, options.precision)
    arrays = {FEATURES: values[POOLED]} | ({MAPS: values[MAPS]} if options.local else {})
    found = {}
    for name, value in arrays.items():
        kept = value.float().to(getattr(torch, options.dtype)).cpu()
        wrong = (~kept.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if wrong:
            why = "dtype=float16 does not reach them" if bool(value.isfinite().all()) else "the weights are damaged"
            raise UserError(f"{images.path(batch.rows[wrong[0]])} gives {name} that are not finite: {why}")
        found[name] = kept.contiguous().numpy()
    return found


def _joined(found: list[tuple[Batch, dict[str, np.ndarray]]]) -> Part:
    """The batches of a part."""
    rows = np.array([row for batch, _ in found for row in batch.rows], dtype=np.int64)
    names = dict.fromkeys(name for _, values in found for name in values)
    values = {name: np.concatenate([given[name] for _, given in found if name in given]) for name in names}
    return Part(rows, values, [pair for batch, _ in found for pair in batch.unreadable])


def _join(
    source: Source, preprocess: Preprocess, images: Images, out: Path, parts: Parts, options: EmbedOptions
) -> Embedded:
    """One file of all parts."""
    names: list[str] = []
    unreadable: list[tuple[str, str]] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def every() -> Iterator[Part]:
        return map(parts.read, range(len(parts.stretches)))

    for part in every():
        names += [images.files[row] for row in part.rows]
        unreadable += [(images.files[row], reason) for row, reason in part.unreadable]
        shapes.update({name: value.shape[1:] for name, value in part.values.items()})
    if not names:
        raise UserError(f"none of {len(images)} images can be read; the first: {unreadable[0][1]}")
    about = {
        "ssl_toolkit": __version__,
        "name": source.name,
        "backbone": source.backbone.config.as_dict(),
        "checkpoint": {"path": source.checkpoint_path, "sha256": source.checkpoint_sha256},
        "preprocessing": preprocess.stored(),
        "precision": str(options.precision).removeprefix("torch."),
        "root": str(images.root),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "unreadable": [{"file": name, "reason": reason} for name, reason in unreadable],
    }
    WRITERS[out.suffix](out, every, names, shapes, np.dtype(options.dtype), json.dumps(about))
    return Embedded(out, len(names), unreadable, shapes)
