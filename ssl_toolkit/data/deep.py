"""Images with 16 bits per value, which Pillow reduces to 8 where they have colour.

OpenCV keeps them, but what is checked before it is asked: PNG chunks by length and checksum, and of a TIFF that all
its strips are in the file and that it is of a kind that OpenCV reads right (tried with OpenCV 4.10, 4.13 and 5.0: a
TIFF that keeps each channel in a plane of its own comes out scrambled, one of two channels loses the second).
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ssl_toolkit.data.probe import PNG_START, TIFF_STARTS, png_chunks, png_header, pnm_header

_BITS, _PHOTOMETRIC, _STRIP_OFFSETS, _STRIP_SIZES, _PLANAR = 258, 262, 273, 279, 284
_TILE_OFFSETS, _TILE_SIZES = 324, 325
_RGB = 2


def decode_deep(raw: NDArray[np.uint8]) -> NDArray[Any] | None:
    """The image in a PNG, TIFF, PGM or PPM of 16 bits: ``(H, W, C)``, upright, with the channels of the file.

    Values are uint16, or float32 from 0 to 65535 where the file has a range of its own (a PGM of 12 bits).

    Returns:
        None for other formats, for 8 bits, and for gray PNG and TIFF, which Pillow reads as they are.

    Raises:
        ValueError: the file is damaged or cut short, or of a kind that cannot be read.
    """
    start = raw[:8].tobytes()
    if start == PNG_START:
        return _png(raw)
    if start[:4] in TIFF_STARTS:
        return _tiff(raw)
    return _pnm(raw)


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """``pixels`` ``(H, W, C)`` upright, as the EXIF ``orientation`` of 1 to 8 says; contiguous."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _opencv(raw: NDArray[np.uint8], channels: int) -> NDArray[np.uint16]:
    """RGB, gray and alpha, or RGBA, whichever ``channels`` says the file has."""
    pixels: Any = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("damaged or cut short")
    stored = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint16 or stored < max(channels, 3):
        raise ValueError(f"{channels} channels of 16 bits in a way that cannot be read")
    if channels == 2:
        return pixels[:, :, [0, 3]]
    return np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3][:channels]])


def _png(raw: NDArray[np.uint8]) -> NDArray[np.uint16] | None:
    info, orientation = png_header(raw)
    if info.bits != 16 or info.channels == 1:
        return None
    view, kind = raw.data, b""
    for kind, start, length in png_chunks(view):
        stored = int.from_bytes(view[start + length : start + length + 4], "big")
        if zlib.crc32(view[start - 4 : start + length]) != stored:
            raise ValueError(f"wrong checksum in its {kind.decode('latin-1')} chunk")
    if kind != b"IEND":
        raise ValueError("cut short")
    return turn(_opencv(raw, info.channels), orientation)  # type: ignore[return-value]


def _tiff(raw: NDArray[np.uint8]) -> NDArray[np.uint16] | None:
    """OpenCV turns a TIFF upright by itself."""
    with PIL.Image.open(io.BytesIO(raw.data)) as opened:
        tags: Any = opened.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(_BITS, (1,))
        if set(bits) != {16} or len(bits) == 1:
            return None
        if tags.get(_PHOTOMETRIC) != _RGB or tags.get(_PLANAR, 1) != 1:
            raise ValueError("a 16-bit TIFF that is not RGB, pixel by pixel: convert it to PNG or .npy")
        tiled = _TILE_OFFSETS in tags
        starts = tags[_TILE_OFFSETS if tiled else _STRIP_OFFSETS]
        sizes = tags[_TILE_SIZES if tiled else _STRIP_SIZES]
    if len(starts) != len(sizes) or any(start + size > len(raw) for start, size in zip(starts, sizes)):
        raise ValueError("cut short")
    return _opencv(raw, len(bits))


def _pnm(raw: NDArray[np.uint8]) -> NDArray[Any] | None:
    header = pnm_header(raw)
    if header is None:
        if raw[:2].tobytes() == b"P3":
            raise ValueError("a PPM in plain text, which may have 16 bits: convert it to PNG")
        return None
    height, width, channels, largest, start = header
    if not 255 < largest < 65536:
        return None
    count = height * width * channels
    if len(raw) - start < 2 * count:
        raise ValueError("cut short")
    values = np.frombuffer(raw.data, dtype=">u2", count=count, offset=start).reshape(height, width, channels)
    return values.astype(np.uint16) if largest == 65535 else values * np.float32(65535 / largest)
