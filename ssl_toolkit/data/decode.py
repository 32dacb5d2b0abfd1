"""Reading image and mask files: upright, whole or an error.

JPEG goes to torchvision, everything else to Pillow, for what each does with damaged files (torchvision 0.29,
Pillow 12): a PNG with a wrong checksum makes torchvision end the whole process with a segmentation fault, and
its WebP decoder ignores orientation and ``mode=GRAY``; a JPEG whose tail is zeros makes Pillow return a
half-gray image. What neither can see: a JPEG cut short and then closed with a proper end marker, and changed
bytes inside a JPEG or WebP, which have no checksum. Colour of 16 bits is in `ssl_toolkit.data.deep`.
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
from ssl_toolkit.data.deep import decode_deep, turn
from ssl_toolkit.data.probe import (
    JPEG_START,
    NUMPY_START,
    TIFF_STARTS,
    ImageInfo,
    jpeg_header,
    probe_image,
    undecodable,
)
from ssl_toolkit.errors import UserError

__all__ = [
    "ARRAY_SUFFIX",
    "SUFFIXES",
    "ImageInfo",
    "decode_image",
    "probe_image",
    "read_bytes",
    "read_image",
    "read_mask",
    "upright_size",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

ARRAY_SUFFIX = ".npy"
"""Arrays are images too, but not beside images: see `ssl_toolkit.data.layout.find_images`."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow and libjpeg


def read_image(path: Path, channels: int = 3, bits: int = 8) -> Image:
    """The image in the file ``path``; see `decode_image`.

    Raises:
        UserError: the file cannot be read, is cut short, or is no image; it names the file.
    """
    return decode_image(read_bytes(path), str(path), channels, bits)


def decode_image(raw: NDArray[np.uint8], name: str, channels: int = 3, bits: int = 8) -> Image:
    """The image in the bytes ``raw`` of a file, ``(H, W, channels)``, turned upright as its EXIF orientation says.

    The format is told by the contents, not by the name. Of an animation the first frame is read. Besides images there
    are ``.npy`` files of ``(H, W)`` or ``(H, W, C)`` uint8 or uint16, taken as they are.

    Args:
        name: of the image, for errors.
        channels: 3 for RGB, 1 for gray, whichever colours the file has, alpha dropped. Any other number takes files
            with as many channels as they are (2 for gray and alpha, 4 for RGBA or CMYK, any for ``.npy``).
        bits: 8: uint8, 16-bit values divided by 256. 16: float32 from 0 to 255, 16-bit values divided by 257, those of
            8 bits as they are.

    Raises:
        UserError: the image is cut short, is none, or has another number of channels; it names the image.
    """
    try:
        pixels = _jpeg(raw, name, channels) if raw[:3].tobytes() == JPEG_START else _other(raw, name, channels, bits)
    except UserError:
        raise
    except PIL.UnidentifiedImageError as error:
        if raw[:4].tobytes() in TIFF_STARTS:
            raise UserError(f"cannot decode {name} (a TIFF of an unusual kind): convert it to PNG or .npy") from error
        raise undecodable(name, error) from error
    except Exception as error:  # on damaged files decoders raise whatever they stumble over
        raise undecodable(name, error) from error
    if bits == 8:
        return pixels
    return pixels / np.float32(257) if pixels.dtype != np.uint8 else pixels.astype(np.float32)


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
        raise undecodable(str(path), error) from error
    if mode not in ("L", "P", "1"):
        raise UserError(f"mask {path} has pixels of type {mode}: a mask is an 8-bit gray or palette image")
    return values.astype(np.uint8)


def upright_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` that `read_image` will return, from the header alone."""
    info = probe_image(read_bytes(path), str(path))
    return info.height, info.width


def read_bytes(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file; one that cannot be read or is empty is a `UserError` that names it."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) == 0:
        raise UserError(f"{path} is empty: remove or replace it")
    return raw


def wrong_channels(name: str, found: int, wanted: int) -> UserError:
    """The error for an image that has not the channels that the config says."""
    return UserError(f"{name} has {found} channels, data.in_channels is {wanted}: change one or the other")


def _jpeg(raw: NDArray[np.uint8], name: str, channels: int) -> Image:
    info, orientation = jpeg_header(raw)
    if channels not in (1, 3):
        raise wrong_channels(name, min(info.channels, 3), channels)  # CMYK is read as RGB
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    # torchvision overlooks an orientation behind other metadata, so the image is turned here
    pixels = decode_jpeg(torch.from_numpy(raw), mode=mode).permute(1, 2, 0)
    return turn(pixels.numpy(), orientation)


def _other(raw: NDArray[np.uint8], name: str, channels: int, bits: int) -> Image:
    if raw[:6].tobytes() == NUMPY_START:
        pixels = _array(raw)
        if pixels.shape[2] != channels:
            raise wrong_channels(name, pixels.shape[2], channels)
        return (pixels >> 8).astype(np.uint8) if bits == 8 and pixels.dtype == np.uint16 else pixels
    deep = decode_deep(raw) if bits == 16 else None
    return _pillow(raw, name, channels, bits) if deep is None else _converted(deep, name, channels)


def _array(raw: NDArray[np.uint8]) -> NDArray[Any]:
    pixels = np.load(io.BytesIO(raw.data), allow_pickle=False)
    if pixels.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ValueError(f"values of type {pixels.dtype}, not uint8 or uint16")
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(f"an array of shape {pixels.shape}, not (H, W) or (H, W, C)")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), order="C", copy=False)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _pillow(raw: NDArray[np.uint8], name: str, channels: int, bits: int) -> Image:
    with PIL.Image.open(io.BytesIO(raw.data)) as opened:
        picture: Any = PIL.ImageOps.exif_transpose(opened)
        if picture.mode == "F":
            raise ValueError("floating-point pixels")
        if picture.mode.startswith("I"):
            values = _sixteen_bits(np.asarray(picture))
            if bits == 16:
                return _converted(values[:, :, None], name, channels)
            picture = PIL.Image.fromarray((values >> 8).astype(np.uint8))
        elif picture.mode in ("P", "PA"):  # straight to RGB would warn about transparent palettes
            picture = picture.convert("RGB" if picture.mode == "P" and "transparency" not in picture.info else "RGBA")
        if channels in (1, 3):
            picture = picture.convert("RGB" if channels == 3 else "L")
        pixels = np.array(picture)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if pixels.shape[2] != channels:
        raise wrong_channels(name, pixels.shape[2], channels)
    return pixels


def _sixteen_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels of more than 16 bits")
    return values.astype(np.uint16)


def _converted(pixels: NDArray[Any], name: str, channels: int) -> NDArray[Any]:
    """``(H, W, C)`` of gray, RGB and perhaps alpha as gray or RGB, in the precision of the file."""
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if channels not in (1, 3):
        raise wrong_channels(name, found, channels)
    if found <= 2:
        return np.ascontiguousarray(pixels[:, :, :1].repeat(channels, axis=2))
    return np.ascontiguousarray(pixels[:, :, :3] if channels == 3 else (pixels[:, :, :3] @ _LUMA)[:, :, None])
