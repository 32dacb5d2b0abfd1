"""Batches of views in an order that depends on the seed alone, from any step on."""

from __future__ import annotations

import gc
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ssl_toolkit.errors import UserError
from ssl_toolkit.views.batch import ViewBatch
from ssl_toolkit.views.reading import Images, Unreadable
from ssl_toolkit.views.spec import ViewsConfig
from ssl_toolkit.views.torch_engine import ViewDataset, single_threaded


class EpochBatches:
    """Which images make up each batch of one process; an epoch is a fresh permutation, its rest dropped.

    Args:
        length: of the data set.
        batch_size: per process.
        seed: of the permutations.
        rank, world: this process among all, on all machines; every process gets equal batches of disjoint images.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.steps_per_epoch = length // (batch_size * world)
        if self.steps_per_epoch < 1:
            raise UserError(
                f"trainer.batch_size: {batch_size * world} images a step asked of a data set of {length}; lower it"
            )
        self.step = 0

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Keys ``(epoch, index)`` from ``self.step`` to the end of its epoch."""
        epoch, start = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        for step in range(start, self.steps_per_epoch):
            first = (step * self.world + self.rank) * self.batch_size
            yield [(epoch, int(i)) for i in order[first : first + self.batch_size]]


def _as_it_is(batch: Any) -> Any:
    return batch


def _heed_the_next(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)


def _start_worker(worker: int) -> None:
    # Ctrl+C and schedulers signal a whole group of processes; the one that trains decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next)
    gc.freeze()
    gc.enable()
    single_threaded(worker)


def worker_loader(
    dataset: Dataset[Any], batches: Iterable[list[tuple[int, int]]], workers: int, pin_memory: bool = False
) -> Any:
    """A `torch.utils.data.DataLoader` that hands a whole batch of keys to ``dataset.__getitems__`` of a worker."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        # Lightning's threads and CUDA make a plain fork unsafe; forkserver starts clean and fast.
        multiprocessing_context="forkserver" if workers and torch.cuda.is_available() else None,
    )


def epoch_of(loader: Any) -> Iterator[Any]:
    """``iter`` of a `worker_loader`; its workers start here.

    Garbage that a fork brings along is never collected there: a pipeline of DALI would wait for threads that only the
    parent has. Python collects from a worker's first line on, so it starts with the collector off.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return iter(loader)
    finally:
        if enabled:
            gc.enable()


def stop_workers(loader: Any) -> None:
    """End the processes of a `worker_loader` now.

    Left to the garbage collector they end later: an error's traceback may hold on to them, and once their queues are
    gone each takes 5 seconds.
    """
    iterator = getattr(loader, "_iterator", None)
    stop = getattr(iterator, "_shutdown_workers", None)  # Lightning calls it too
    if stop is not None:
        stop()
    for worker in getattr(iterator, "_workers", ()):
        if worker.is_alive():  # stuck
            worker.kill()


class ViewLoader(ABC):
    """Iterates over one epoch of `ViewBatch`, starting where training stands.

    Args:
        batches: which images make up each batch.
        position: tells the number of steps already trained, at the start of each epoch or after a resume.
        unreadable: counts the images that could not be read.

    Attributes:
        waited: seconds spent waiting for batches so far; with ``workers=0`` making them is waiting.
    """

    def __init__(self, batches: EpochBatches, position: Callable[[], int], unreadable: Unreadable) -> None:
        self.batches, self.position, self.unreadable = batches, position, unreadable
        self.waited = 0.0
        self._epoch: Generator[ViewBatch, None, None] | None = None

    def __len__(self) -> int:
        return self.batches.steps_per_epoch

    def __iter__(self) -> Iterator[ViewBatch]:
        self._epoch = self._counted()
        return self._epoch

    def close(self) -> None:
        """Stop the workers and let go of everything; the loader cannot be used again."""
        if self._epoch is not None:
            self._epoch.close()
        self._epoch = None
        self._release()

    @abstractmethod
    def _batches(self) -> Iterator[ViewBatch | UserError]:
        """The batches from ``self.batches.step`` on; an error in place of a batch is raised."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of workers and buffers for good."""

    def _counted(self) -> Generator[ViewBatch, None, None]:
        self.batches.step = self.position()
        start = time.monotonic()
        for batch in self._batches():
            self.waited += time.monotonic() - start
            if isinstance(batch, UserError):
                raise batch
            self.unreadable.add(batch.unreadable)
            yield batch
            start = time.monotonic()


class TorchLoader(ViewLoader):
    """Batches of the ``torch`` engine.

    Args:
        images, config, seed: see `ViewDataset`.
        batches, position, unreadable: see `ViewLoader`.
        workers: processes that make views; 0 makes them in this one.
        pin_memory: page-locked batches, for transfer to a GPU.
    """

    def __init__(
        self,
        images: Images,
        config: ViewsConfig,
        seed: int,
        batches: EpochBatches,
        position: Callable[[], int],
        unreadable: Unreadable,
        *,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(batches, position, unreadable)
        self._loader = worker_loader(ViewDataset(images, config, seed), batches, workers, pin_memory)

    def _batches(self) -> Iterator[ViewBatch | UserError]:
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        return epoch_of(self._loader)

    def _release(self) -> None:
        stop_workers(self._loader)
        self._loader = None
