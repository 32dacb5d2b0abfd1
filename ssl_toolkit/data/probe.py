"""What the header of an image file says, without decoding a pixel."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ssl_toolkit.errors import UserError

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
NUMPY_START = b"\x93NUMPY"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 0x0112

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNM_HEADER = re.compile(rb"(P[56])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258


class ImageInfo(NamedTuple):
    """What a file holds.

    Attributes:
        height, width: in pixels, upright: as the decoded image will have them.
        channels: as stored: 1 gray, 2 gray and alpha, 3 colour, 4 colour and alpha or CMYK; a palette has its colours'.
        bits: per value; 8 where there are fewer.
        format: lower case: ``jpeg``, ``png``, ``webp``, ``tiff``, ``npy``, ...
    """

    height: int
    width: int
    channels: int
    bits: int
    format: str


def probe_image(raw: NDArray[np.uint8], name: str) -> ImageInfo:
    """Size and kind of the image in the bytes ``raw`` of a file, from the header alone.

    JPEG, PNG and npy are parsed here (some microseconds), the rest by Pillow. A file whose tail is missing is not
    noticed.

    Args:
        name: of the image, for errors.

    Raises:
        UserError: the header is damaged, or the bytes are no image; it names the image.
    """
    try:
        return _probe(raw)
    except Exception as error:  # on damaged files parsers raise whatever they stumble over
        raise undecodable(name, error) from error


def undecodable(name: str, error: BaseException) -> UserError:
    """The error for a file that no decoder takes, with the first line of the reason."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if ".cpp:" in reason:  # torchvision begins with where in its source it was
        reason = reason.rsplit(".cpp:", 1)[1].partition(", ")[2]
    if isinstance(error, PIL.UnidentifiedImageError):
        reason = "not an image of a known format"
    return UserError(f"cannot decode {name} ({reason}): remove or replace it")


def jpeg_header(raw: NDArray[np.uint8]) -> tuple[ImageInfo, int]:
    """The stored (not upright) size and kind of a JPEG, and its EXIF orientation, 1 to 8.

    Raises:
        ValueError: the header is damaged or cut short.
    """
    frame, orientation = None, 0
    for marker, segment in _jpeg_segments(raw.data):
        if marker == 0xE1 and not orientation and bytes(segment[:6]) == b"Exif\0\0":
            orientation = _exif_orientation(bytes(segment[6:]))
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and frame is None:
            frame = struct.unpack(">BHHB", segment[:6])
    if frame is None or 0 in frame:
        raise ValueError("no frame header")
    bits, height, width, channels = frame
    return ImageInfo(height, width, channels, bits, "jpeg"), orientation or 1


def _jpeg_segments(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Marker and contents of each segment before the image data."""
    at = 2
    while True:
        if at + 4 > len(view):
            raise ValueError("cut short in its header")
        if view[at] != 0xFF:
            raise ValueError("damaged header")
        marker = view[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # stands alone
            at += 2
        elif marker in (0xD9, 0xDA):
            return
        else:
            length = view[at + 2] << 8 | view[at + 3]
            yield marker, view[at + 4 : at + 2 + length]
            at += 2 + max(length, 2)


def _exif_orientation(blob: bytes) -> int:
    """The orientation in a block of EXIF data, 1 (upright) where there is none that is valid."""
    order = {b"II": "<", b"MM": ">"}.get(blob[:2])
    try:
        if order is not None:
            (start,) = struct.unpack_from(f"{order}I", blob, 4)
            (count,) = struct.unpack_from(f"{order}H", blob, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", blob, entry)
                if tag == ORIENTATION:
                    return value if 1 <= value <= 8 else 1
    except struct.error:  # damaged metadata does not make the pixels unreadable
        pass
    return 1


def png_chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Kind, position and length of the data of each whole chunk of a PNG, up to ``IEND`` or the end of the bytes."""
    at = len(PNG_START)
    while at + 12 <= len(view):
        length = int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        if at + 12 + length > len(view):
            return
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length


def png_header(raw: NDArray[np.uint8]) -> tuple[ImageInfo, int]:
    """The stored (not upright) size and kind of a PNG, and its EXIF orientation, 1 to 8.

    Raises:
        ValueError: the header is damaged or cut short.
    """
    view = raw.data
    if len(view) < 33 or bytes(view[12:16]) != b"IHDR":
        raise ValueError("no header")
    width, height, bits, colour = struct.unpack(">IIBB", view[16:26])
    channels, orientation = _PNG_CHANNELS[colour], 1
    for kind, start, length in png_chunks(view):
        data = view[start : start + length]
        if kind == b"eXIf":
            orientation = _exif_orientation(bytes(data))
        elif kind == b"tRNS" and colour == 3:
            channels = 4
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and bytes(data[:4]) in (b"Raw ", b"XML:"):
            orientation = _pillow_orientation(raw)  # older places of the same tag
    return ImageInfo(height, width, channels, max(bits, 8), "png"), orientation


def _pillow_orientation(raw: NDArray[np.uint8]) -> int:
    with PIL.Image.open(io.BytesIO(raw.data)) as opened:
        return int(opened.getexif().get(ORIENTATION, 1))


def pnm_header(raw: NDArray[np.uint8]) -> tuple[int, int, int, int, int] | None:
    """Height, width, channels, largest value and start of the pixels of a binary PGM or PPM; None for anything else."""
    if raw[:2].tobytes() not in (b"P5", b"P6"):
        return None
    found = _PNM_HEADER.match(raw[:4096].tobytes())
    if found is None:
        raise ValueError("damaged header")
    width, height, largest = (int(number) for number in found.group(2, 3, 4))
    return height, width, 1 if found.group(1) == b"P5" else 3, largest, found.end()


def _probe(raw: NDArray[np.uint8]) -> ImageInfo:
    start = raw[:8].tobytes()
    if start[:3] == JPEG_START or start == PNG_START:
        info, orientation = jpeg_header(raw) if start[:3] == JPEG_START else png_header(raw)
        return info if orientation < 5 else info._replace(height=info.width, width=info.height)
    if start[:6] == NUMPY_START:
        return _probe_array(raw)
    pnm = pnm_header(raw)
    if pnm is not None:
        height, width, channels, largest, _ = pnm
        return ImageInfo(height, width, channels, 16 if largest > 255 else 8, "ppm")
    return _probe_pillow(raw)


def _probe_array(raw: NDArray[np.uint8]) -> ImageInfo:
    stream = io.BytesIO(raw[: 1 << 16].data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if len(shape) not in (2, 3):
        raise ValueError(f"an array of shape {shape}, not (H, W) or (H, W, C)")
    return ImageInfo(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, 8 * dtype.itemsize, "npy")


def _probe_pillow(raw: NDArray[np.uint8]) -> ImageInfo:
    with PIL.Image.open(io.BytesIO(raw.data)) as opened:
        width, height = opened.size
        bits = 8
        if opened.mode.startswith(("I", "F")):
            bits = 16 if "16" in opened.mode else 32
        tags = getattr(opened, "tag_v2", None)
        if tags is not None:  # newer Pillows give the upright size of a TIFF, older ones the stored size
            width, height = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
            bits = max(8, *tags.get(_TIFF_BITS, (8,)))
        turned = opened.getexif().get(ORIENTATION, 1) >= 5
        channels = len(opened.getbands())
        if opened.mode == "P":
            channels = 4 if "transparency" in opened.info else 3
        form = str(opened.format).lower()
    return ImageInfo(width, height, channels, bits, form) if turned else ImageInfo(height, width, channels, bits, form)
