"""Data sets whose images are files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import DataConfig, Image, LabelledImages
from ssl_toolkit.data.decode import decode_image, read_bytes
from ssl_toolkit.errors import UserError

_RGB_MEAN, _RGB_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass
class FileConfig(DataConfig):
    """Options of images of one's own.

    Attributes:
        mean, std: ImageNet's; with ``in_channels=1`` and nothing else said, the mean of its channels. Another number of
            channels needs its own (``ssl-toolkit data check`` measures those of files).
        in_channels: 3 for RGB, 1 for gray, any other number takes the channels as they are.
        bits: 8, or 16 to keep the precision of 16-bit files.
    """

    in_channels: int = 3
    bits: int = 8

    def __post_init__(self) -> None:
        if self.in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, not {self.in_channels}")
        if self.bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, not {self.bits}")
        if self.in_channels == 1 and (list(self.mean), list(self.std)) == (_RGB_MEAN, _RGB_STD):
            self.mean, self.std = [0.449], [0.226]
        super().__post_init__()
        if len(self.mean) != self.in_channels:
            raise ValueError(
                f"mean has {len(self.mean)} channels, in_channels is {self.in_channels}: give data.mean and data.std "
                "per channel, in [0, 1] units (ssl-toolkit data check measures those of files)"
            )


class FileDataset(LabelledImages):
    """Images in files, one each.

    A subclass calls this with what it found.

    Args:
        folder: what ``files`` are relative to.
        files: paths with ``/`` below ``folder``, or absolute ones.
        classes: names of the classes, or None.
        labels: one per file where there are classes.
        in_channels, bits: see `FileConfig`.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        *,
        classes: tuple[str, ...] | None = None,
        labels: Sequence[int] | NDArray[np.int64] | None = None,
        in_channels: int = 3,
        bits: int = 8,
    ) -> None:
        self.folder = folder
        # One packed array: a list of a million strings would be copied into every worker as it is touched.
        self._files = np.array([os.fsencode(name) for name in files])
        self.classes = classes
        self.label_array = None if classes is None else np.asarray(labels, dtype=np.int64)
        if self.label_array is not None and self.label_array.shape != (len(self._files),):
            raise ValueError(f"{len(self._files)} files with labels of shape {self.label_array.shape}")
        self.in_channels = in_channels
        self.bits = bits

    def __len__(self) -> int:
        return len(self._files)

    def relative(self, index: int) -> str:
        """Path of image ``index`` below ``folder``, with ``/``."""
        return os.fsdecode(self._files[index])

    def path(self, index: int) -> Path:
        """Path of image ``index``."""
        return self.folder / self.relative(index)

    def image(self, index: int) -> Image:
        path = self.path(index)
        return decode_image(read_bytes(path), str(path), self.in_channels, self.bits)

    def encoded(self, index: int) -> NDArray[np.uint8] | None:
        return read_bytes(self.path(index)) if self.in_channels == 3 and self.bits == 8 else None

    def fingerprint(self) -> str:
        """A hash of the relative paths and sizes of the files."""
        digest = hashlib.blake2b(digest_size=8)
        start = os.fsencode(self.folder)
        for name in self._files:
            try:
                size = os.stat(os.path.join(start, name)).st_size  # noqa: PTH116, PTH118 (Paths are slow by the million)
            except OSError as error:
                where = os.fsdecode(os.path.join(start, name))  # noqa: PTH118
                raise UserError(f"cannot read {where}: {error.strerror}") from error
            digest.update(b"%s\0%d\0" % (name, size))
        return digest.hexdigest()
