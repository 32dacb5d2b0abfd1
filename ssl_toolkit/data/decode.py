"""Reading image and mask files: upright, 8 bit, whole or an error.

JPEG goes to torchvision, everything else to Pillow, for what each does with damaged files (torchvision 0.29,
Pillow 12): a PNG with a wrong checksum makes torchvision end the whole process with a segmentation fault, and
its WebP decoder ignores orientation and ``mode=GRAY``; a JPEG whose tail is zeros makes Pillow return a
half-gray image. What neither can see: a JPEG cut short and then closed with a proper end marker, and changed
bytes inside a JPEG or WebP, which have no checksum.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from ssl_toolkit.data.base import Image
from ssl_toolkit.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_JPEG_START = b"\xff\xd8\xff"
_ORIENTATION = 0x0112


def read_image(path: Path, channels: int = 3, bits: int = 8) -> Image:
    """The image in the file ``path``; see `decode_image`.

    Raises:
        UserError: the file cannot be read, is cut short, or is no image; it names the file.
    """
    return decode_image(read_bytes(path), str(path), channels, bits)


def decode_image(raw: NDArray[np.uint8], name: str, channels: int = 3, bits: int = 8) -> Image:
    """The image in the bytes ``raw`` of a file, ``(H, W, channels)``, turned upright as its EXIF orientation says.

    The format is told by the contents, not by the name. Of an animation the first frame is read. With 3 channels alpha
    is dropped.

    Args:
        name: of the image, for errors.
        channels: 3 for RGB, 1 for gray.
        bits: 8: uint8, 16-bit values divided by 256.

    Raises:
        UserError: the image is cut short, or is none; it names the image.
    """
    try:
        return _jpeg(raw, channels) if raw[:3].tobytes() == _JPEG_START else _other(raw, channels)
    except Exception as error:  # on damaged files decoders raise whatever they stumble over
        raise _undecodable(name, error) from error


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The class of each pixel in ``path``, ``(H, W)`` uint8: gray values or palette positions, never colours.

    Raises:
        UserError: the file cannot be read, or its pixels are not single 8-bit values.
    """
    raw = read_bytes(path)
    try:
        with PIL.Image.open(io.BytesIO(raw.tobytes())) as opened:
            mode, values = opened.mode, np.array(opened)
    except Exception as error:
        raise _undecodable(str(path), error) from error
    if mode not in ("L", "P", "1"):
        raise UserError(f"mask {path} has pixels of type {mode}: a mask is an 8-bit gray or palette image")
    return values.astype(np.uint8)


def upright_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` that `read_image` will return, from the header alone."""
    try:
        with PIL.Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION, 1) >= 5
    except Exception as error:
        raise _undecodable(str(path), error) from error
    return (width, height) if turned else (height, width)


def read_bytes(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file; one that cannot be read or is empty is a `UserError` that names it."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) == 0:
        raise UserError(f"{path} is empty: remove or replace it")
    return raw


def _undecodable(name: str, error: BaseException) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if ".cpp:" in reason:  # torchvision begins with where in its source it was
        reason = reason.rsplit(".cpp:", 1)[1].partition(", ")[2]
    if isinstance(error, PIL.UnidentifiedImageError):
        reason = "not an image of a known format"
    return UserError(f"cannot decode {name} ({reason}): remove or replace it")


def _jpeg(raw: NDArray[np.uint8], channels: int) -> Image:
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    pixels = decode_jpeg(torch.from_numpy(raw), mode=mode, apply_exif_orientation=True)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _other(raw: NDArray[np.uint8], channels: int) -> Image:
    with PIL.Image.open(io.BytesIO(raw.tobytes())) as opened:
        picture: Any = PIL.ImageOps.exif_transpose(opened)
        if picture.mode == "F":
            raise ValueError("floating-point pixels")
        if picture.mode.startswith("I"):
            picture = PIL.Image.fromarray(_eight_bit(np.asarray(picture)))
        elif picture.mode in ("P", "PA"):  # straight to RGB would warn about transparent palettes
            picture = picture.convert("RGBA")
        pixels = np.array(picture.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[:, :, None]


def _eight_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels of more than 16 bits")
    return (values.astype(np.int64) >> 8).astype(np.uint8)
