"""Data sets that are small enough to be held in memory."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import Image, LabelledImages


class InMemory(LabelledImages):
    """Images in an array.

    Attributes:
        images: ``(N, H, W, C)`` uint8.
    """

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image:
        return self.images[index]

    def fingerprint(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.blake2b(self.images.data, digest_size=8).hexdigest()
