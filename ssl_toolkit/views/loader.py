"""Batches of views in an order that depends on the seed alone, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from ssl_toolkit.errors import UserError
from ssl_toolkit.views.batch import ViewBatch
from ssl_toolkit.views.spec import ViewsConfig
from ssl_toolkit.views.torch_engine import Images, ViewDataset, single_threaded


class EpochBatches:
    """Which images make up each batch of one process; an epoch is a fresh permutation, its rest dropped.

    Args:
        length: of the data set.
        batch_size: per process.
        seed: of the permutations.
        rank, world: this process among all; every process gets equal batches of disjoint images.
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


def _as_it_is(batch: ViewBatch | UserError) -> ViewBatch | UserError:
    return batch


class ViewLoader:
    """Iterates over one epoch of `ViewBatch`, starting where training stands.

    Args:
        images, config, seed, batch_size, rank, world: see `ViewDataset` and `EpochBatches`.
        workers: processes that make views; 0 makes them in this one.
        position: tells the number of steps already trained, at the start of each epoch or after a resume.
        pin_memory: page-locked batches, for transfer to a GPU.
    """

    def __init__(
        self,
        images: Images,
        config: ViewsConfig,
        *,
        seed: int,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world: int = 1,
        position: Callable[[], int] = lambda: 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = EpochBatches(len(images), batch_size, seed, rank, world)
        self.position = position
        self._epoch: Generator[ViewBatch, None, None] | None = None
        self._loader: DataLoader[ViewBatch] | None = DataLoader(
            ViewDataset(images, config, seed),
            batch_sampler=self.batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            worker_init_fn=single_threaded,
            # Lightning's threads and CUDA make a plain fork unsafe; forkserver starts clean and fast.
            multiprocessing_context="forkserver" if workers and torch.cuda.is_available() else None,
        )

    def __len__(self) -> int:
        return self.batches.steps_per_epoch

    def __iter__(self) -> Iterator[ViewBatch]:
        self._epoch = self._batches()
        return self._epoch

    def close(self) -> None:
        """Stop the workers now. Garbage collection may close their queues first, and then each takes 5 seconds."""
        if self._epoch is not None:
            self._epoch.close()
        self._epoch = self._loader = None

    def _batches(self) -> Generator[ViewBatch, None, None]:
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        self.batches.step = self.position()
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
