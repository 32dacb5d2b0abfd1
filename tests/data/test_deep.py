"""16 bits and any number of channels: exact values, every orientation, and no damaged file read in silence."""

import io
import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data.decode import decode_image, probe_image
from ssl_toolkit.errors import UserError
from tests.data.file_formats import deep_noise, exif, png, png_chunk, tiff

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
DEEP = deep_noise(40, 60, 4)
SHALLOW = (DEEP >> 8).astype(np.uint8)


def bytes_of(raw):
    return np.frombuffer(bytearray(raw), dtype=np.uint8)


def decode(raw, channels=3, bits=16):
    pixels = decode_image(bytes_of(raw), "some/file", channels, bits)
    assert pixels.dtype == (np.float32 if bits == 16 else np.uint8)
    assert pixels.flags.c_contiguous
    return pixels


def fails(raw, channels=3, bits=16, needle="cannot decode"):
    with pytest.raises(UserError) as caught:
        decode(raw, channels, bits)
    line = str(caught.value)
    assert "some/file" in line
    assert needle in line
    assert "\n" not in line


def saved(pixels, form, mode=None, **options):
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def array(pixels):
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def pnm(pixels, largest=65535):
    height, width, channels = pixels.shape
    kind = "P6" if channels == 3 else "P5"
    return f"{kind}\n# made by hand\n{width} {height}\n{largest}\n".encode() + pixels.astype(">u2").tobytes()


WRITERS = {
    "png": png,
    "tiff": tiff,
    "tiff, deflate": lambda p: tiff(p, deflate=True),
    "tiff, big endian": lambda p: tiff(p, order=">"),
    "pnm": pnm,
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_kept(form, channels):
    pixels = DEEP[..., :channels]
    raw = WRITERS[form](pixels)
    assert np.allclose(decode(raw, channels), pixels / 257, rtol=1e-7)
    assert decode(raw, channels).max() <= 255
    if form != "pnm":  # Pillow scales those instead of dropping the low byte
        assert np.array_equal(decode(raw, channels, 8), SHALLOW[..., :channels])
    info = probe_image(bytes_of(raw), "x")
    assert info[:4] == (40, 60, channels, 16)


def test_an_eight_bit_file_keeps_its_values_at_sixteen():
    for form in ("PNG", "TIFF", "PPM", "BMP"):
        assert np.array_equal(decode(saved(SHALLOW[..., :3], form)), SHALLOW[..., :3])
    raw = saved(np.full((16, 16, 3), 90, np.uint8), "JPEG")
    assert np.abs(decode(raw) - 90).max() < 2
    assert np.array_equal(decode(raw), decode(raw, bits=8))


def test_an_opencv_file_is_read_as_it_was_written():
    for form in (".png", ".tiff", ".ppm"):
        _, raw = cv2.imencode(form, DEEP[..., :3])
        assert np.allclose(decode(bytes(raw)), DEEP[..., 2::-1] / 257, rtol=1e-7)


def test_colours_are_converted_and_alpha_dropped():
    luma = DEEP[..., :3].astype(np.float64) @ [0.299, 0.587, 0.114]
    for raw in (png(DEEP[..., :3]), png(DEEP), tiff(DEEP), pnm(DEEP[..., :3])):
        assert np.allclose(decode(raw, 1)[..., 0], luma / 257, atol=1e-3)
    for raw in (png(DEEP), tiff(DEEP)):
        assert np.allclose(decode(raw, 3), DEEP[..., :3] / 257, rtol=1e-7)
    for raw in (png(DEEP[..., :1]), png(DEEP[..., :2]), pnm(DEEP[..., :1])):
        assert np.allclose(decode(raw, 3), DEEP[..., [0, 0, 0]] / 257, rtol=1e-7)
    transparent = png(DEEP[..., :3], png_chunk(b"tRNS", bytes(6)))
    assert np.allclose(decode(transparent), DEEP[..., :3] / 257, rtol=1e-7)


def test_alpha_is_a_channel_where_it_is_asked_for():
    assert np.allclose(decode(png(DEEP), 4), DEEP / 257, rtol=1e-7)
    assert np.allclose(decode(tiff(DEEP), 4), DEEP / 257, rtol=1e-7)
    assert np.allclose(decode(png(DEEP[..., :2]), 2), DEEP[..., :2] / 257, rtol=1e-7)
    for form in ("PNG", "TIFF"):
        assert np.array_equal(decode(saved(SHALLOW, form), 4, 8), SHALLOW)
        assert np.array_equal(decode(saved(SHALLOW, form), 4, 16), SHALLOW)
    gray_alpha = PIL.Image.fromarray(SHALLOW).convert("LA")
    assert np.array_equal(decode(saved(SHALLOW, "PNG", "LA"), 2, 8), np.asarray(gray_alpha))
    cmyk = PIL.Image.fromarray(SHALLOW[..., :3]).convert("CMYK")
    assert np.array_equal(decode(saved(SHALLOW[..., :3], "TIFF", "CMYK"), 4, 8), np.asarray(cmyk))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
def test_arrays_have_any_number_of_channels(kind, channels):
    pixels = deep_noise(7, 9, channels)
    pixels = (pixels >> 8 if kind == np.uint8 else pixels).astype(kind)
    deep = kind != np.uint8
    assert np.array_equal(decode(array(pixels), channels, 8), pixels >> 8 if deep else pixels)
    assert np.allclose(decode(array(pixels), channels), pixels / 257 if deep else pixels, rtol=1e-7)
    assert np.array_equal(decode(array(np.asfortranarray(pixels)), channels, 8), decode(array(pixels), channels, 8))
    assert probe_image(bytes_of(array(pixels)), "x") == (7, 9, channels, 16 if deep else 8, "npy")
    if channels == 1:
        assert np.array_equal(decode(array(pixels[..., 0]), 1, 8), decode(array(pixels), 1, 8))


def test_another_number_of_channels_names_both_and_the_option():
    for bits in (8, 16):
        for raw, found in (
            (saved(SHALLOW[..., :3], "PNG"), 3),
            (saved(SHALLOW[..., :3], "JPEG"), 3),
            (saved(SHALLOW[..., :3], "JPEG", "L"), 1),
            (saved(SHALLOW[..., :3], "PNG", "L"), 1),
            (saved(SHALLOW[..., :3], "PNG", "P"), 3),
            (png(DEEP[..., :1]), 1),
            (png(DEEP[..., :3]), 3),
            (array(SHALLOW), 4),
        ):
            fails(raw, 5, bits, f"has {found} channels, data.in_channels is 5")
    fails(array(SHALLOW), 3, 8, "has 4 channels, data.in_channels is 3")  # no array says which of its channels is alpha
    fails(array(SHALLOW[..., 0]), 3, 8, "has 1 channels, data.in_channels is 3")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_orientation(orientation, bits):
    pixels = DEEP[:4, :6, :3]
    wanted = TURNS[orientation](pixels) / 257 if bits == 16 else TURNS[orientation](pixels) >> 8
    for raw in (png(pixels, png_chunk(b"eXIf", exif(orientation))), tiff(pixels, orientation=orientation)):
        assert np.allclose(decode(raw, 3, bits), wanted, rtol=1e-7)
        assert probe_image(bytes_of(raw), "x")[:2] == wanted.shape[:2]


JPEG = saved(np.add.outer(np.arange(16) * 9, np.arange(32) * 3).astype(np.uint8), "JPEG", quality=95)


def app1(data):
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def with_segments(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_of_a_jpeg_is_found_wherever_it_is(orientation, order):
    plain = decode(JPEG, 1, 8)
    block = app1(b"Exif\0\0" + exif(orientation, order))
    xmp = app1(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    before_data = JPEG.index(b"\xff\xda")
    for raw in (
        with_segments(block),
        with_segments(xmp, block),
        with_segments(b"\xff", block, xmp),
        with_segments(block, app1(b"Exif\0\0" + exif(1 if orientation > 1 else 6))),  # the first one counts
        JPEG[:before_data] + block + JPEG[before_data:],
    ):
        image = decode(raw, 1, 8)
        assert np.array_equal(image, TURNS[orientation](plain))
        assert probe_image(bytes_of(raw), "x")[:2] == image.shape[:2]


def test_damaged_metadata_leaves_a_jpeg_readable():
    for data in (b"", b"MM", exif(6)[:12], exif(9), exif(6).replace(b"\0\x08", b"\xff\xff", 1)):
        raw = with_segments(app1(b"Exif\0\0" + data))
        assert np.array_equal(decode(raw, 1, 8), decode(JPEG, 1, 8))
        assert probe_image(bytes_of(raw), "x").height == 16


def cuts(raw):
    return [raw[:n] for n in [int(len(raw) * s) for s in (0.1, 0.5, 0.9)] + [len(raw) - n for n in (1, 4, 12, 13)]]


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_cut_files_never_decode(form, channels):
    raw = WRITERS[form](DEEP[..., :channels])
    for cut in cuts(raw):
        # A missing checksum or end mark after whole pixels does no harm to gray (Pillow) and deflated TIFF.
        if len(raw) - len(cut) > 13 or (form != "tiff, deflate" and channels == 3):
            fails(cut, channels)
            continue
        try:
            assert np.array_equal(decode(cut, channels), decode(raw, channels))
        except UserError as error:
            assert "some/file" in str(error)  # noqa: PT017


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_changed_bytes_and_unwritten_tails(at):
    for raw in (png(DEEP[..., :3]), png(DEEP), tiff(DEEP, deflate=True)):
        cut = int(len(raw) * at)
        fails(raw[:cut] + bytes(len(raw) - cut))
    for raw in (png(DEEP[..., :3]), png(DEEP)):
        changed = bytearray(raw)
        changed[int(len(raw) * at)] ^= 255
        fails(bytes(changed), needle="checksum")


def test_each_png_chunk_is_checked():
    raw = png(DEEP[..., :3], pieces=4)
    without_end = raw[: -len(png_chunk(b"IEND", b""))]
    fails(without_end, needle="cut short")
    last = without_end.rindex(b"IDAT") - 4
    fails(raw[:last], needle="cut short")
    fails(raw[:last] + png_chunk(b"IEND", b""))  # whole chunks, but not all of them


def test_kinds_that_decoders_would_scramble_are_refused():
    fails(tiff(DEEP[..., :3], planar=2), needle="convert it to PNG or .npy")
    for pixels in (deep_noise(8, 8, 2), deep_noise(8, 8, 5), SHALLOW[:8, :8, [0, 1, 2, 3, 0]]):
        fails(tiff(pixels), needle="convert it to PNG or .npy")
    fails(b"P3 2 2 65535 " + b"1 2 3 " * 4, needle="plain text")
    fails(array(np.zeros((4, 4, 3), np.float32)), needle="float32")
    fails(array(np.zeros((4, 4, 3, 1), np.uint8)), needle="(4, 4, 3, 1)")
    fails(array(np.zeros((0, 4, 3), np.uint8)), needle="(0, 4, 3)")
    for cut in cuts(array(SHALLOW[..., :3])):
        fails(cut)
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}]), allow_pickle=True)
    fails(stream.getvalue())


def test_values_are_scaled_by_the_range_of_the_file():
    twelve = deep_noise(9, 11, 3) >> 4
    assert np.allclose(decode(pnm(twelve, 4095)), twelve * (255 / 4095), rtol=1e-6)
    assert np.allclose(decode(pnm(twelve[..., :1], 4095), 1), twelve[..., :1] * (255 / 4095), rtol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_probing(mode):
    for form in ("PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG"):
        if (mode == "CMYK") != (form in ("TIFF", "JPEG")) and mode == "CMYK":
            continue
        if form in ("WEBP", "GIF", "BMP", "JPEG") and mode not in ("L", "RGB", "CMYK"):
            continue
        raw = saved(SHALLOW[..., :3], form, mode)
        info = probe_image(bytes_of(raw), "x")
        assert info[:2] == (40, 60)
        assert (info.bits, info.format) == (8, form.lower())
        wanted = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 3, "1": 1, "CMYK": 4}[mode]
        assert info.channels == (3 if form == "WEBP" else info.channels if form == "GIF" else wanted)


def test_probing_reads_the_header_alone():
    for raw in (png(DEEP), JPEG, saved(SHALLOW, "PNG"), pnm(DEEP[..., :3]), tiff(DEEP), array(DEEP)):
        whole = probe_image(bytes_of(raw), "x")
        assert probe_image(bytes_of(raw[: max(700, len(raw) // 8)]), "x") == whole
    for raw in (
        b"hello",
        JPEG[:30],
        png(DEEP)[:30],
        b"P6\n4",
        b"\x93NUMPY\x01",
        array(np.zeros((2, 2)))[:40],
        b"\xff\xd8\xff",
    ):
        with pytest.raises(UserError, match="cannot decode some/file"):
            probe_image(bytes_of(raw), "some/file")


def test_an_orientation_in_the_text_of_a_png_counts_as_it_does_for_pillow():
    text = b"Raw profile type exif\0" + b"\nexif\n%8d\n" % len(exif(6)) + exif(6).hex().encode() + b"\n"
    raw = png(DEEP[..., :3], png_chunk(b"tEXt", text))
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        assert opened.getexif()[0x0112] == 6
    assert np.allclose(decode(raw), np.rot90(DEEP[..., :3], -1) / 257, rtol=1e-7)
    assert probe_image(bytes_of(raw), "x")[:2] == (60, 40)
