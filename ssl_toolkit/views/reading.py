"""Reading images for views, past those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.errors import UserError
from ssl_toolkit.views.photometric import Pixels
from ssl_toolkit.views.spec import ViewsConfig

T = TypeVar("T")

ATTEMPTS = 20
"""Images tried in place of one that cannot be read, before the run stops."""


class Images(Protocol):
    """What a view engine needs of a data set."""

    classes: tuple[str, ...] | None
    in_channels: int

    def __len__(self) -> int: ...

    def image(self, index: int) -> Pixels:
        """Image ``index``, ``(H, W, C)`` uint8, or float32 from 0 to 255; a `UserError` if it cannot be read."""
        ...

    def encoded(self, index: int) -> NDArray[np.uint8] | None:
        """The bytes of its file, or None where it has none; a `UserError` if it cannot be read."""
        ...

    def label(self, index: int) -> int:
        """Class of image ``index``."""
        ...


def read_pixels(images: Images, index: int, *types: str) -> Pixels:
    """Image ``index``; a `UserError` too where its channels are not those of the data set or its type is another."""
    image = images.image(index)
    channels = image.shape[2]
    if channels != images.in_channels or image.dtype.name not in types:
        wanted = f"{images.in_channels} of {' or '.join(types)}"
        raise UserError(f"image {index} has {channels} channels of {image.dtype}, not {wanted}")
    return image


def replacement(seed: int, epoch: int, index: int, attempt: int, length: int) -> int:
    """The image taken in place of ``index`` at the given attempt: random, and the same in any process."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[attempt, index, epoch, 1]))
    return int(generator.integers(length))


def read_or_replace(
    read: Callable[[int], T], key: tuple[int, int], seed: int, length: int, unreadable: list[str]
) -> tuple[T, int]:
    """``read(index)``, or what a replacement gives, with the index that was read.

    Args:
        read: raises `UserError` for an image that cannot be read.
        key: epoch and index.
        unreadable: receives the message of each image that could not be read.

    Raises:
        UserError: `ATTEMPTS` images in a row cannot be read.
    """
    epoch, wanted = key
    index = wanted
    for attempt in range(ATTEMPTS):
        try:
            return read(index), index
        except UserError as error:
            unreadable.append(str(error))
            index = replacement(seed, epoch, wanted, attempt, length)
    raise UserError(f"{ATTEMPTS} images drawn in a row cannot be read, the last: {unreadable[-1]}")


class Unreadable:
    """Counts the images that could not be read, each once.

    Args:
        total: images in the data set.
        share: of them that may be unreadable; with more the run stops.
        report: called with a line for each.
    """

    def __init__(self, total: int, share: float, report: Callable[[str], None] | None = None) -> None:
        self.total, self.share, self.report = total, share, report
        self.messages: list[str] = []
        self._known: set[str] = set()

    def add(self, messages: tuple[str, ...]) -> None:
        """Take up what a batch met.

        Raises:
            UserError: the share is exceeded; it names the first of them.
        """
        for message in messages:
            if message in self._known:
                continue
            self._known.add(message)
            self.messages.append(message)
            if self.report is not None:
                self.report(message)
        if len(self.messages) > self.share * self.total:
            raise UserError(self._verdict())

    def _verdict(self) -> str:
        if len(self.messages) == 1:
            return f"{self.messages[0]}; or let some be skipped with trainer.max_unreadable"
        shown = "; ".join(self.messages[:5]) + ("; ..." if len(self.messages) > 5 else "")
        return (
            f"{len(self.messages)} of {self.total} images cannot be read, more than trainer.max_unreadable="
            f"{self.share:g} allows: {shown}"
        )


class BatchDataset(torch.utils.data.Dataset[T], Generic[T]):
    """Makes whole batches for `torch.utils.data.DataLoader`.

    Args:
        images: the data set.
        config: the recipe.
        seed: of all randomness.
    """

    def __init__(self, images: Images, config: ViewsConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed
        self.positions = config.positions()

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> T | UserError:
        """The batch of ``(epoch, index)`` keys; an error is returned, so that it leaves a worker process as it is."""
        try:
            return self.batch(keys)
        except UserError as error:
            return error

    def batch(self, keys: Sequence[tuple[int, int]]) -> T:
        """The batch of ``(epoch, index)`` keys."""
        raise NotImplementedError
