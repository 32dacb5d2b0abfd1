"""Reading files: every format upright and whole, every damaged file one error that names it."""

import io

import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data.decode import read_image, read_mask, upright_size
from ssl_toolkit.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
RAMP = np.stack(
    [np.add.outer(np.arange(40) * a, np.arange(60) * b) % 256 for a, b in ((1, 2), (2, 1), (3, 1))], axis=-1
).astype(np.uint8)
LOSSLESS = ("png", "bmp", "tiff", "ppm")
DAMAGED_JPEG = [{}, {"progressive": True}, {"optimize": True}]


def encoded(pixels, form, mode=None, **options):
    image = PIL.Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, {"jpg": "JPEG"}.get(form, form.upper()), **options)
    return stream.getvalue()


@pytest.fixture
def put(tmp_path):
    def write(raw, name="image.bin"):
        path = tmp_path / name
        path.write_bytes(raw)
        return path

    return write


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_keep_every_pixel(put, form):
    image = read_image(put(encoded(NOISE, form)))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, NOISE)


@pytest.mark.parametrize("form", ["jpg", "webp"])
@pytest.mark.parametrize("channels", [3, 1])
def test_lossy_formats_come_close(put, form, channels):
    calm = np.full((40, 60, 3), (200, 40, 90), dtype=np.uint8)
    calm[:, 30:] = (20, 180, 60)
    image = read_image(put(encoded(calm, form, quality=95)), channels)
    wanted = calm if channels == 3 else np.asarray(PIL.Image.fromarray(calm).convert("L"))[..., None]
    assert image.shape == (40, 60, channels)
    assert np.abs(image.astype(int) - wanted.astype(int)).mean() < 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
@pytest.mark.parametrize("channels", [3, 1])
def test_pixel_types_become_rgb_or_gray(put, mode, channels):
    form = "tiff" if mode == "CMYK" else "png"
    image = read_image(put(encoded(RAMP, form, mode)), channels)
    wanted = PIL.Image.fromarray(RAMP).convert(mode).convert("RGB" if channels == 3 else "L")
    assert image.shape == (40, 60, channels)
    assert np.array_equal(image, np.asarray(wanted).reshape(40, 60, channels))


def test_cmyk_and_gray_jpeg(put):
    for mode in ("CMYK", "L"):
        assert read_image(put(encoded(RAMP, "jpg", mode))).shape == (40, 60, 3)


def test_transparent_palettes_and_sixteen_bits(put):
    palette = PIL.Image.fromarray(RAMP).quantize(16)
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=bytes([0] * 8 + [128] * 8))
    assert np.array_equal(read_image(put(stream.getvalue())), np.asarray(palette.convert("RGB")))
    deep = RAMP[..., 0].astype(np.uint16) * 256 + 77
    stream = io.BytesIO()
    PIL.Image.fromarray(deep).save(stream, "PNG")
    assert np.array_equal(read_image(put(stream.getvalue()))[..., 1], RAMP[..., 0])


def test_the_contents_tell_the_format_not_the_name(put):
    assert np.array_equal(read_image(put(encoded(NOISE, "png"), "wrong.jpg")), NOISE)
    assert read_image(put(encoded(NOISE, "jpg"), "wrong.png")).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(put, form, orientation):
    corners = np.zeros((16, 32, 3), dtype=np.uint8)
    corners[:8, :16], corners[:8, 16:], corners[8:, :16] = 240, 160, 80
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = put(encoded(corners, form, exif=exif))
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    image, wanted = read_image(path), turn(corners)
    assert image.shape == wanted.shape
    assert upright_size(path) == wanted.shape[:2]
    assert np.abs(image.astype(int) - wanted.astype(int)).max() < 12


def raises(path, needle=None):
    with pytest.raises(UserError) as caught:
        read_image(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert ".cpp" not in line
    assert needle is None or needle in line


@pytest.mark.parametrize("form", [*LOSSLESS, "webp", "gif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_never_decode(put, form, share):
    raw = encoded(NOISE, form)
    raises(put(raw[: int(len(raw) * share)]), "remove or replace")


@pytest.mark.parametrize("options", DAMAGED_JPEG)
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_truncated_jpeg_never_decodes(put, options, cut):
    raw = encoded(NOISE, "jpg", **options)
    raises(put(raw[: int(len(raw) * cut)]), "remove or replace")
    raises(put(raw[: int(len(raw) * cut)] + bytes(len(raw))), "remove or replace")  # preallocated, never filled


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_damaged_png_is_an_error_not_a_crash(put, at):
    """torchvision's PNG decoder ends the process on these."""
    raw = bytearray(encoded(NOISE, "png"))
    raw[int(len(raw) * at)] ^= 255
    raises(put(bytes(raw)), "cannot decode")
    zeroed = bytes(raw[: len(raw) // 2]) + bytes(len(raw) // 2)
    raises(put(zeroed), "cannot decode")


def test_files_that_are_no_images(put, tmp_path):
    raises(put(b""), "is empty")
    raises(put(b"hello, this is text"), "not an image of a known format")
    raises(put(b"\xff\xd8\xff"), "cannot decode")
    raises(put(b"\x89PNG\r\n\x1a\n"), "cannot decode")
    raises(tmp_path / "nowhere.png", "cannot read")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    raises(folder, "cannot read")


def test_pixels_that_have_no_eight_bit_meaning(put):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).random((8, 8)).astype(np.float32)).save(stream, "TIFF")
    raises(put(stream.getvalue()), "floating-point")
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)).save(stream, "TIFF")
    raises(put(stream.getvalue()), "16 bits")


def test_masks_are_values_never_colours(put):
    values = np.random.default_rng(0).integers(0, 5, (9, 11)).astype(np.uint8)
    assert np.array_equal(read_mask(put(encoded(values, "png"))), values)
    palette = PIL.Image.fromarray(values).convert("P")
    palette.putpalette([c for i in range(256) for c in (255 - i, i, 7)])
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    assert np.array_equal(read_mask(put(stream.getvalue())), values)
    one_bit = read_mask(put(encoded((values > 2).astype(np.uint8) * 255, "png", "1")))
    assert np.array_equal(one_bit, values > 2)


def test_colour_masks_and_damaged_masks(put):
    with pytest.raises(UserError, match="pixels of type RGB"):
        read_mask(put(encoded(NOISE, "png")))
    with pytest.raises(UserError, match="cannot decode"):
        read_mask(put(encoded(NOISE, "png")[:200]))
    deep = np.full((4, 4), 257, dtype=np.uint16)  # modulo 256 it would pass for class 1
    stream = io.BytesIO()
    PIL.Image.fromarray(deep).save(stream, "PNG")
    with pytest.raises(UserError, match="8-bit gray or palette"):
        read_mask(put(stream.getvalue()))
    with pytest.raises(UserError, match="cannot decode"):
        upright_size(put(b"text"))
