"""Images in batches as a backbone sees them, the unreadable ones named."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_toolkit.data.decode import read_image
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.data.transforms import eval_batch
from ssl_toolkit.embedding.images import Images
from ssl_toolkit.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Some images.

    Attributes:
        rows: of those that were read.
        pixels: ``(len(rows), C, S, S)``, values 0 to 255, or None where none was.
        unreadable: row and reason of the others.
    """

    rows: list[int]
    pixels: Tensor | None
    unreadable: list[tuple[int, str]]


class _Reader(Dataset):
    """Whole batches as items, so that a worker process hands over one tensor."""

    def __init__(self, images: Images, batches: Sequence[range], preprocess: Preprocess) -> None:
        self.images, self.batches, self.preprocess = images, batches, preprocess

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> Batch:
        rows, pixels, unreadable = [], [], []
        for row in self.batches[batch]:
            try:
                pixels.append(read_image(self.images.path(row), len(self.preprocess.mean)))
                rows.append(row)
            except UserError as error:
                unreadable.append((row, str(error)))
        joined = eval_batch(pixels, self.preprocess.resize, self.preprocess.size) if pixels else None
        return Batch(rows, joined, unreadable)


def read(
    images: Images, batches: Sequence[range], preprocess: Preprocess, *, workers: int, device: torch.device
) -> Iterator[Batch]:
    """The images of each of ``batches`` in turn.

    Args:
        workers: processes that read; 0 reads in this one.
    """
    loader: DataLoader = DataLoader(
        _Reader(images, batches, preprocess),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=_start_worker,
        # A fork of a process that uses CUDA can hang.
        multiprocessing_context="forkserver" if workers and device.type == "cuda" else None,
    )
    yield from loader


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that computes decides


def _as_it_is(batch: Batch) -> Batch:
    return batch
