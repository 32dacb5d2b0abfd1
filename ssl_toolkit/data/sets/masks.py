"""Masks from files, checked against their images and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import VOID
from ssl_toolkit.data.decode import read_mask, upright_size
from ssl_toolkit.errors import UserError

NO_CLASS = -1
"""In a table: the pixel value stands for nothing, not even void."""


def plain_table(classes: int) -> NDArray[np.int16]:
    """The table of masks whose values are class numbers, 255 void."""
    table = np.full(256, NO_CLASS, dtype=np.int16)
    table[:classes] = np.arange(classes)
    table[VOID] = VOID
    return table


def class_mask(path: Path, image: Path, table: NDArray[np.int16], rule: str) -> NDArray[np.uint8]:
    """The pixel classes in the mask ``path`` of the file ``image``: ``(H, W)`` uint8, 255 where void.

    Args:
        table: ``(256,)``, the class of each pixel value: a number, `VOID` or `NO_CLASS`.
        rule: which values there should be, for errors.

    Raises:
        UserError: there is no mask, it cannot be read, has another size than its image, or a value without a class.
    """
    if not path.is_file():
        raise UserError(f"no mask {path} for the image {image}")
    values = read_mask(path)
    height, width = upright_size(image)
    if values.shape != (height, width):
        raise UserError(f"mask {path} is {values.shape[0]}x{values.shape[1]}, its image {image} is {height}x{width}")
    mask = table[values]
    strange = values[mask == NO_CLASS]
    if len(strange):
        raise UserError(f"mask {path} of the image {image} has the value {strange[0]}: {rule}")
    return mask.astype(np.uint8)
