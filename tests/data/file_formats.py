"""PNG and TIFF files of 16 bits, put together byte by byte: no library at hand writes all kinds."""

import struct
import zlib

import numpy as np

PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, *extra, pieces=3):
    """``(H, W, C)`` uint16 as a PNG with ``extra`` chunks before the data, which is cut into ``pieces``."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    packed = zlib.compress(rows)
    step = -(-len(packed) // pieces)
    data = [png_chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step)]
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR[channels], 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + b"".join(data) + png_chunk(b"IEND", b"")


def exif(orientation, order=">", kind=3):
    """A block of EXIF data with the orientation alone."""
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack(order + "I", orientation)
    start = b"MM" if order == ">" else b"II"
    return start + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value + bytes(4)


def tiff(pixels, rows=16, deflate=False, order="<", orientation=None, planar=1):
    """``(H, W, C)`` uint8 or uint16 as a TIFF in strips of ``rows``, its directory before the pixels."""
    height, width, channels = pixels.shape
    bits, rgb = 8 * pixels.dtype.itemsize, channels >= 3
    planes = [pixels] if planar == 1 else [pixels[..., c : c + 1] for c in range(channels)]
    kind = pixels.dtype.newbyteorder(order)
    strips = [p[r : r + rows].astype(kind).tobytes() for p in planes for r in range(0, height, rows)]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    short, long = "H", "I"
    fields = {
        256: (long, [width]),
        257: (long, [height]),
        258: (short, [bits] * channels),
        259: (short, [8 if deflate else 1]),
        262: (short, [2 if rgb else 1]),
        273: (long, [0] * len(strips)),
        277: (short, [channels]),
        278: (long, [rows]),
        279: (long, [len(strip) for strip in strips]),
        284: (short, [planar]),
    }
    if orientation:
        fields[274] = (short, [orientation])
    if channels - (3 if rgb else 1):
        fields[338] = (short, [2] * (channels - (3 if rgb else 1)))
    sizes = {tag: struct.calcsize(f"={len(values)}{form}") for tag, (form, values) in fields.items()}
    after = 8 + 2 + 12 * len(fields) + 4
    start = after + sum(size for size in sizes.values() if size > 4)
    fields[273] = (long, [start + sum(map(len, strips[:i])) for i in range(len(strips))])
    directory, outside = b"", b""
    for tag, (form, values) in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        directory += struct.pack(order + "HHI", tag, 3 if form == short else 4, len(values))
        if len(packed) <= 4:
            directory += packed.ljust(4, b"\0")
        else:
            directory += struct.pack(order + "I", after + len(outside))
            outside += packed
    head = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(fields))
    return head + directory + bytes(4) + outside + b"".join(strips)


def deep_noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
