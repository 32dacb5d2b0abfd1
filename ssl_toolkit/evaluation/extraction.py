"""Features of the splits of a data set: from disk where they are, computed where they are not, by all processes."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import timm
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.criteria.distributed import rank, world_size
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import (
    MASKS,
    FeatureBank,
    Part,
    Values,
    allocate,
    bank_of,
    compute,
    evaluating,
    parts_of,
    require_images,
    rows_into,
    split_batches,
)
from ssl_toolkit.evaluation.reading import Preparation, Rows, read_labels
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.store import Entry, Lock, Mask, Store, ranges
from ssl_toolkit.files import cache_dir, disk_full
from ssl_toolkit.processes.world import agree, from_first, in_any_process
from ssl_toolkit.progress import progress_bar

T = TypeVar("T")

POLL_SECONDS = 2.0
"""Between looks at whether another evaluation is done with the same features."""
CODE = ("ssl_toolkit.data.transforms", "ssl_toolkit.evaluation.features", "ssl_toolkit.evaluation.reading")
"""Modules that decide what the features of an image are, besides the backbone's own."""
READ = 8
"""Images and masks that tell one data set's from another's, besides its fingerprint."""


@dataclass
class FeaturesConfig:
    """Where features are kept.

    Attributes:
        cache: on disk, in ``features`` of the cache folder (``SSL_TOOLKIT_CACHE``), for later evaluations too; else
            in memory, for this one.
        memory_gb: that features may take in memory where they are not on disk, in each process.
        disk_gb: that features of all backbones may take on disk; beyond it those not used for longest are removed.
    """

    cache: bool = True
    memory_gb: float = 8.0
    disk_gb: float = 20.0

    def __post_init__(self) -> None:
        if not (self.memory_gb > 0 and self.disk_gb > 0):
            raise ValueError(f"memory_gb and disk_gb must be positive, not {self.memory_gb} and {self.disk_gb}")


@dataclass
class Extraction:
    """Features of one backbone on one data set.

    Attributes:
        weights: `Source.weights_digest`.
        fingerprints: of the data, by split.
        options: where they are kept.
        console: where progress is shown.
    """

    source: Source
    preparation: Preparation
    device: torch.device
    precision: torch.dtype
    weights: str
    fingerprints: Mapping[str, str]
    options: FeaturesConfig = field(default_factory=FeaturesConfig)
    console: Console | None = None
    _in_memory: int = 0

    def run(self, datasets: Mapping[str, ImageDataset], wanted: Mapping[str, frozenset[str]]) -> dict[str, FeatureBank]:
        """A bank for each split of which parts are ``wanted``; every process gets the same.

        The backbone is left in the mode it had, on ``device``.

        Raises:
            UserError: an empty split, bad labels, masks or images, features that are not finite, or features that fit
                neither on disk nor in memory.
        """
        backbone = self.source.backbone.to(self.device)
        chosen = {split: parts for split, parts in wanted.items() if parts}
        labels = agree(lambda: {split: _labels(datasets[split]) for split in chosen})
        with evaluating(backbone):
            parts = {
                split: parts_of(backbone, self.preparation, names, device=self.device, precision=self.precision)
                for split, names in chosen.items()
            }
            if not self.options.cache:
                needed = sum(_size(parts[split], len(datasets[split])) for split in chosen)
                self._require_memory(needed, "features.cache=false keeps features in memory")
            store = Store(cache_dir() / "features", self.options.disk_gb * 1e9)
            found = {split: self._split(datasets[split], parts[split], store) for split in chosen}
        return {split: bank_of(tensors, labels[split]) for split, tensors in found.items()}

    def _split(self, dataset: ImageDataset, parts: Sequence[Part], store: Store) -> dict[str, Tensor]:
        """The parts of one split, by name."""
        if not self.options.cache:
            return self._to_memory(dataset, parts, {})
        variant = agree(lambda: _masks_digest(dataset) if any(part.name == MASKS for part in parts) else "")
        parts = [replace(part, variant=variant) if part.name == MASKS else part for part in parts]
        entry = store.entry(agree(lambda: self._identity(dataset)), len(dataset))
        lock = entry.lock()
        try:
            self._wait_for(lock, dataset)
            self._to_disk(dataset, parts, store, entry)
            tensors = entry.mapped(parts)
            agree(entry.touch)  # none goes on, and frees the entry, before all have it
            return tensors
        except _NotOnDisk as reason:
            return self._instead(dataset, parts, entry, reason)
        finally:
            lock.release()

    def _identity(self, dataset: ImageDataset) -> dict[str, Any]:
        """All that features depend on."""
        given = asdict(self.preparation)
        return {
            "weights": self.weights,
            "backbone": self.source.backbone.config.as_dict(),
            "code": _code_digest(self.source.backbone),
            "data": [dataset.name, self.fingerprints[dataset.split], _images_digest(dataset)],
            "preparation": {key: given[key] for key in ("mean", "std", "resize", "size")},
            "precision": str(self.precision),
        }

    def _wait_for(self, lock: Lock, dataset: ImageDataset) -> None:
        """Have the first process take ``lock``."""
        waiting = f"another evaluation extracts features of {dataset.name} {dataset.split}: waiting for it"
        while not _done_by_first(lock.taken):
            self._say(waiting)
            waiting = ""
            time.sleep(POLL_SECONDS)

    def _to_disk(self, dataset: ImageDataset, parts: Sequence[Part], store: Store, entry: Entry) -> None:
        """Have the disk hold all rows of ``parts``."""
        done = _done_by_first(lambda: _prepared(entry, parts, store))
        if in_any_process(not entry.folder.is_dir(), self.device):
            raise _NotOnDisk(f"not all machines see {entry.folder}")
        parts = [part for part in parts if not done[part.name].all()]
        shares = self._shares(dataset, {part.name: done[part.name] for part in parts})
        if any(shares):
            full = agree(lambda: self._write(dataset, parts, entry, shares))
            if in_any_process(full, self.device):
                raise _NotOnDisk(f"the disk of {entry.folder.parent} is full", full=True)

    def _write(self, dataset: ImageDataset, parts: Sequence[Part], entry: Entry, shares: list[list[Rows]]) -> bool:
        """Compute this process's share and write it; whether the disk was full."""
        try:
            writer = entry.writer(parts, rank())
            try:
                self._compute(dataset, parts, shares, writer.put)
            finally:
                writer.close()
        except (OSError, UserError) as error:
            if not disk_full(error):
                raise
            return True
        return False

    def _instead(
        self, dataset: ImageDataset, parts: Sequence[Part], entry: Entry, reason: _NotOnDisk
    ) -> dict[str, Tensor]:
        """The parts in memory, where the disk cannot hold them; what it does hold is taken from there."""
        name = f"features of {dataset.name} {dataset.split}"
        self._require_memory(_size(parts, len(dataset)), f"{name} cannot be kept on disk ({reason})")
        self._say(f"{name}: kept in memory, not on disk ({reason})")
        seen = not in_any_process(not entry.folder.is_dir(), self.device)
        found = from_first(lambda: entry.done(parts)) if seen else {}
        there = entry.mapped([part for part in parts if part.name in found and found[part.name].any()])
        tensors = self._to_memory(dataset, parts, {part: (found[part], tensor) for part, tensor in there.items()})
        if reason.full:
            from_first(entry.remove)
        return tensors

    def _to_memory(
        self, dataset: ImageDataset, parts: Sequence[Part], kept: Mapping[str, tuple[Mask, Tensor]]
    ) -> dict[str, Tensor]:
        """The parts in the memory of every process; those rows that ``kept`` has are not computed again."""
        tensors = allocate(parts, len(dataset))
        done = {part.name: np.zeros(len(dataset), dtype=bool) for part in parts}
        for name, (rows, tensor) in kept.items():
            for start, stop in ranges(rows):
                tensors[name][start:stop] = tensor[start:stop]
            done[name] = rows
        shares = self._shares(dataset, done)
        agree(lambda: self._compute(dataset, parts, shares, rows_into(tensors)))
        self._exchange(tensors, shares)
        return tensors

    def _shares(self, dataset: ImageDataset, done: Mapping[str, Mask]) -> list[list[Rows]]:
        """Batches with rows that are not done, a stretch of them for each process. Which images make a batch depends
        on nothing else, so that neither does rounding."""
        batches = split_batches(len(dataset), self.preparation.batch_size)
        todo = [rows for rows in batches if not all(there[rows].all() for there in done.values())]
        stretches = np.array_split(np.arange(len(todo)), world_size())
        return [[todo[i] for i in stretch] for stretch in stretches]

    def _compute(
        self,
        dataset: ImageDataset,
        parts: Sequence[Part],
        shares: list[list[Rows]],
        put: Callable[[Rows, Values], None],
    ) -> None:
        """This process's share of the batches."""
        mine, title = shares[rank()], f"features of {dataset.name} {dataset.split}"
        total, left = len(dataset), sum(map(len, mine))
        if len(shares) > 1:
            total, title = left, f"{title}, process 1 of {len(shares)}"
        names = {part.name for part in parts}
        with progress_bar(title, total, done=total - left, console=self.console) as bar:
            compute(
                self.source.backbone,
                dataset,
                mine,
                self.preparation,
                names,
                put,
                bar,
                device=self.device,
                precision=self.precision,
            )

    def _exchange(self, tensors: Mapping[str, Tensor], shares: list[list[Rows]]) -> None:
        """Have every process hold what each computed."""
        if len(shares) == 1:
            return
        for process, batches in enumerate(shares):
            for rows in batches:
                for tensor in tensors.values():
                    part = tensor[rows[0] : rows[-1] + 1]
                    sent = part.view(torch.uint8).to(self.device)
                    dist.broadcast(sent, src=process)
                    part.view(torch.uint8).copy_(sent)

    def _require_memory(self, size: int, why: str) -> None:
        limit = self.options.memory_gb
        total = self._in_memory + size
        if total > limit * 1e9:
            room = " or make room on disk (SSL_TOOLKIT_CACHE, features.disk_gb)" if self.options.cache else ""
            raise UserError(
                f"{why}: they take {total / 1e9:.3g} GB of memory, features.memory_gb is {limit:g}; raise it{room}"
            )
        self._in_memory = total

    def _say(self, line: str) -> None:
        if line and rank() == 0 and self.console is not None:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class _NotOnDisk(Exception):
    """Why the disk cannot hold features; ``full`` where it ran out of room on the way."""

    def __init__(self, why: str, full: bool = False) -> None:
        super().__init__(why)
        self.full = full


def _done_by_first(action: Callable[[], T]) -> T:
    """What ``action`` gives in the first process; what the disk says against it is raised in all."""

    def attempt() -> tuple[T | None, str]:
        try:
            return action(), ""
        except (OSError, UserError) as error:
            return None, f"{getattr(error, 'strerror', None) or error}"

    result, why = from_first(attempt)
    if why:
        raise _NotOnDisk(why)
    return result  # type: ignore[return-value]


def _prepared(entry: Entry, parts: Sequence[Part], store: Store) -> dict[str, Mask]:
    """Which rows are there, once there is room for the others and a file for each part."""
    store.make_room(entry.missing_bytes(parts))
    return entry.prepare(parts)


def _code_digest(backbone: Backbone) -> str:
    """A hash of the code that makes features of images."""
    kinds = type(backbone).__mro__
    modules = {kind.__module__ for kind in kinds[: kinds.index(nn.Module)]} | set(CODE)
    digest = hashlib.sha256(timm.__version__.encode())
    for name in sorted(modules):
        with contextlib.suppress(OSError, TypeError):  # not from a file
            digest.update(inspect.getsource(sys.modules[name]).encode())
    return digest.hexdigest()[:16]


def _labels(dataset: ImageDataset) -> Tensor | None:
    require_images(dataset)
    return read_labels(dataset)


def _images_digest(dataset: ImageDataset) -> str:
    """A hash of some images: splits may have files of the same names and sizes."""
    digest = hashlib.sha256()
    for index in _some(dataset):
        digest.update(dataset.image(index).tobytes())
    return digest.hexdigest()[:16]


def _masks_digest(dataset: ImageDataset) -> str:
    """A hash of the classes and of some masks: a fingerprint is one of images."""
    digest = hashlib.sha256(repr(dataset.mask_classes).encode())
    for index in _some(dataset):
        digest.update(dataset.mask(index).tobytes())
    return f"-{digest.hexdigest()[:12]}"


def _some(dataset: ImageDataset) -> list[int]:
    """Images spread evenly."""
    return [int(i) for i in np.linspace(0, len(dataset) - 1, min(READ, len(dataset)))]


def _size(parts: Sequence[Part], length: int) -> int:
    return length * sum(part.bytes_per_image for part in parts)
