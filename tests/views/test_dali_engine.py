"""The dali engine against the torch engine, image by image, and its windows against DALI's own generator."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.views import ViewBatch, ViewGroup, ViewsConfig, choose_engine, view_loader
from ssl_toolkit.views.geometry import DRAWS, random_window
from tests.views.helpers import PLAIN, Photos, Ramps, jpeg, views

pytest.importorskip("nvidia.dali")
from ssl_toolkit.views.dali_engine import SourceDataset  # imports DALI

CPU = torch.device("cpu")

OPERATIONS: dict[str, tuple[dict[str, Any], float, int]] = {
    # What is done besides crop and resize: options, mean difference at most, largest away from the edges at most.
    "bicubic": ({"interpolation": "bicubic"}, 0.3, 5),
    "bilinear": ({"interpolation": "bilinear"}, 0.3, 5),
    "flip": ({"flip": 1.0}, 0.3, 5),
    "brightness": ({"jitter": 1.0, "brightness": 0.8}, 0.3, 6),
    "contrast": ({"jitter": 1.0, "contrast": 0.8}, 0.3, 6),
    "saturation": ({"jitter": 1.0, "saturation": 0.8}, 0.8, 8),
    "hue": ({"jitter": 1.0, "hue": 0.5}, 0.7, 16),
    "gray": ({"gray": 1.0}, 0.3, 5),
    "blur": ({"blur": [1.0]}, 0.3, 5),
    "solarize": ({"solarize": [1.0]}, 0.3, 5),
    "all": ({"jitter": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "blur": [1.0]}, 0.9, 16),
}
"""The parity table of docs/views.md."""


def differences(options: dict[str, Any]) -> np.ndarray:
    """Differences of the two engines in 24 views of 12 photographs."""
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "flip": 0.0}
    config = views(ViewGroup(**{"count": 2, "size": 64, **PLAIN, **still, **options}))
    images = Photos(12)
    gaps = []
    for ours, theirs in zip(*(_batches(engine, images, config) for engine in ("dali", "torch"))):
        for a, b in zip(ours.views, theirs.views):
            assert torch.equal(a.box, b.box)
            assert torch.equal(a.flip, b.flip)
            assert a.image.shape == b.image.shape
            assert a.image.dtype == b.image.dtype == torch.uint8
            assert a.image.stride() == b.image.stride()
            gaps.append((a.image.int() - b.image.int()).abs().numpy())
    return np.concatenate(gaps)


def _batches(engine: str, images: Any, config: ViewsConfig, batch_size: int = 6) -> list[ViewBatch]:
    loader = view_loader(engine, images, config, seed=5, batch_size=batch_size, workers=0, device=CPU)
    batches = list(loader)
    loader.close()
    return batches


@pytest.mark.parametrize("name", OPERATIONS)
def test_parity_with_the_torch_engine(name: str) -> None:
    options, mean, largest = OPERATIONS[name]
    gap = differences(options)
    inner = gap[:, :, 4:-4, 4:-4]
    assert gap.mean() < mean
    assert inner.max() <= largest


@pytest.mark.parametrize(
    "recipe", [[ViewGroup(count=4, size=24)], [ViewGroup(size=32), ViewGroup(count=6, size=16, large=False)]]
)
def test_any_number_of_views(recipe: list[ViewGroup]) -> None:
    config = views(*recipe)
    (ours,), (theirs,) = (_batches(engine, Photos(4), config, 4) for engine in ("dali", "torch"))
    assert len(ours.views) == config.num_views
    assert ours.num_large == config.num_large
    assert torch.equal(ours.image_size, theirs.image_size)
    for a, b in zip(ours.views, theirs.views):
        assert torch.equal(a.box, b.box)
        assert (a.image.int() - b.image.int()).abs().float().mean() < 1.5


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_flips_tell_where_the_pixels_come_from(flip: float) -> None:
    config = views(ViewGroup(count=1, size=16, scale=[0.2, 0.8], flip=flip, interpolation="bilinear", **PLAIN))
    (batch,) = _batches("dali", Ramps(8), config, 8)
    view = batch.views[0]
    for row in range(8):
        x0, y0, x1, y1 = view.box[row].tolist()
        columns = x0 + (np.arange(16) + 0.5) * (x1 - x0) / 16 - 0.5
        rows = y0 + (np.arange(16) + 0.5) * (y1 - y0) / 16 - 0.5
        columns = columns[::-1] if flip else columns
        inner = slice(2, -2)
        assert np.abs(view.image[row, 0].numpy()[inner, inner] - columns[None, inner]).max() < 1.01
        assert np.abs(view.image[row, 1].numpy()[inner, inner] - rows[inner, None]).max() < 1.01


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    class Stack(Ramps):
        in_channels = channels
        classes = None

        def image(self, index: int) -> np.ndarray:
            return np.random.default_rng(index).integers(0, 256, (40, 50, channels), dtype=np.uint8)

    config = views(ViewGroup(size=24, jitter=1.0, gray=0.5, solarize=[0.5], blur=[0.5]))
    (ours,), (theirs,) = (_batches(engine, Stack(8), config, 8) for engine in ("dali", "torch"))
    assert ours.label is None
    for a, b in zip(ours.views, theirs.views):
        assert a.image.shape == (8, channels, 24, 24)
        gap = (a.image.int() - b.image.int()).abs().float()
        assert gap.median() <= 1


def test_files_and_arrays_mix_in_a_batch() -> None:
    class Mixed(Photos):
        def encoded(self, index: int) -> np.ndarray | None:
            return None if index % 3 == 0 else super().encoded(index)

    config = views(ViewGroup(size=32, **PLAIN))
    for ours, theirs in zip(_batches("dali", Mixed(), config), _batches("dali", Photos(), config)):
        assert torch.equal(ours.index, theirs.index)
        gap = (ours.views[0].image.int() - theirs.views[0].image.int()).abs()
        assert gap.max() <= 3  # the two decoders


def test_turned_gray_and_cmyk_files_are_read_as_the_torch_engine_reads_them() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter

    class Odd(Photos):
        def __init__(self) -> None:
            super().__init__(4)
            photo = PIL.Image.fromarray(self.image(1))
            self.files[0] = jpeg(photo, exif=exif.tobytes())
            self.files[2:] = [jpeg(photo.convert(mode)) for mode in ("L", "CMYK")]

    config = views(ViewGroup(size=32, **PLAIN))
    (ours,), (theirs,) = (_batches(engine, Odd(), config, 4) for engine in ("dali", "torch"))
    assert torch.equal(ours.image_size, theirs.image_size)
    assert len({tuple(size) for size in ours.image_size.tolist()}) == 2
    assert torch.equal(ours.views[1].box, theirs.views[1].box)
    gap = (ours.views[1].image.int() - theirs.views[1].image.int()).abs()
    assert gap[:, :, 4:-4, 4:-4].max() <= 4


def test_only_whole_jpegs_of_common_kinds_are_left_to_dali() -> None:
    # Its decoders fill what is missing with gray on some devices, and read CMYK in their own way.
    class Kinds(Photos):
        def __init__(self) -> None:
            super().__init__(4)
            photo = PIL.Image.fromarray(self.image(1))
            self.files[1:] = [jpeg(photo.convert("L")), jpeg(photo.convert("CMYK")), self.files[3][:-2]]

        def image(self, index: int) -> np.ndarray:
            return super().image(index) if index < 3 else self.image(0)

    batch = SourceDataset(Kinds(), views(ViewGroup(size=16)), 0).batch([(0, i) for i in range(4)])
    assert (batch.shapes[:, 2] == 0).tolist() == [True, True, False, False]


def oriented(photo: np.ndarray, *orientations: int) -> np.ndarray:
    """A JPEG with a block of EXIF data for each orientation."""
    raw = jpeg(photo).tobytes()
    blocks = []
    for orientation in orientations:
        entry = struct.pack("<HHHII", 1, 0x0112, 3, 1, orientation)
        exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + bytes(4)
        blocks.append(b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif)
    return np.frombuffer(b"".join([raw[:2], *blocks, raw[2:]]), np.uint8).copy()


def test_every_orientation_is_turned_as_the_torch_engine_turns_it() -> None:
    class Turned(Photos):
        def __init__(self) -> None:
            super().__init__(12)
            photo = self.image(3)
            turns = [(), *((o,) for o in range(1, 9)), (6, 3), (1, 6), (9,)]  # of two DALI 2.4 would overrun a buffer
            self.files = [oriented(photo, *orientations) for orientations in turns]

    config = views(ViewGroup(size=48, scale=[0.3, 1.0], **PLAIN))
    (ours,), (theirs,) = (_batches(engine, Turned(), config, 12) for engine in ("dali", "torch"))
    assert torch.equal(ours.image_size, theirs.image_size)
    assert len({tuple(size) for size in ours.image_size.tolist()}) == 2
    for a, b in zip(ours.views, theirs.views):
        assert torch.equal(a.box, b.box)
        assert (a.image.int() - b.image.int()).abs()[:, :, 4:-4, 4:-4].max() <= 4


def test_windows_are_distributed_as_those_of_dalis_generator() -> None:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1000, num_threads=1, device_id=None, seed=1)
    def generator() -> Any:
        shape = types.Constant(np.array([375, 500, 3], np.int64), device="cpu")
        return tuple(fn.random_crop_generator(shape, random_area=[0.08, 1.0], random_aspect_ratio=[0.75, 1.3333]))

    pipeline = generator()
    pipeline.build()
    parts = [[np.array(x.as_tensor()) for x in pipeline.run()] for _ in range(4)]
    theirs = np.concatenate([np.concatenate(part, axis=1) for part in parts])
    numbers = np.random.default_rng(0).random((4000, DRAWS))
    ours = np.array([random_window(u, 375, 500, [0.08, 1.0], [0.75, 1.3333]) for u in numbers.tolist()])
    for column in range(4):
        grid = np.arange(501)
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        gap = np.abs(np.searchsorted(a, grid, side="right") - np.searchsorted(b, grid, side="right")) / 4000
        assert gap.max() < 0.044  # Kolmogorov-Smirnov at about one in a thousand


def test_auto_takes_the_torch_engine_without_a_gpu() -> None:
    engine = choose_engine("auto", CPU, Ramps())
    assert engine.name == "torch"
    assert "CUDA" in engine.reason
    assert choose_engine("dali", CPU, Ramps()).name == "dali"


def test_what_dali_cannot_do_is_refused_or_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deep(Ramps):
        bits = 16

    cuda = torch.device("cuda")
    with pytest.raises(UserError, match=r"views.engine=dali cannot be used: .*16; use views.engine=torch"):
        choose_engine("dali", cuda, Deep())
    assert choose_engine("auto", cuda, Deep()).name == "torch"
    assert choose_engine("auto", cuda, Ramps()).name == "dali"
    import nvidia.dali

    monkeypatch.setattr(nvidia.dali, "__version__", "2.0.0")
    assert (
        "DALI is 2.0.0, which leaves turned JPEGs as they lie; 2.2 or newer"
        in choose_engine("auto", cuda, Ramps()).reason
    )
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    engine = choose_engine("auto", cuda, Ramps())
    assert engine.name == "torch"
    assert "pip install" in engine.reason
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(UserError, match="runs on Linux, this is Darwin"):
        choose_engine("dali", CPU, Ramps())


def test_sixteen_bits_are_seen_in_every_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "deep.npy", np.zeros((4, 8, 8, 3), np.uint16))
    options = {"name": "arrays", "images": str(tmp_path / "deep.npy"), "val_fraction": 0.0, "bits": 16}
    with pytest.raises(UserError, match="DALI's graph takes images of 8 bits"):
        choose_engine("dali", CPU, build_dataset(options, "train"))
    options["bits"] = 8
    assert choose_engine("dali", CPU, build_dataset(options, "train")).name == "dali"


def test_more_channels_than_dali_takes_are_left_to_torch() -> None:
    class Spectra(Ramps):
        in_channels = 200

    with pytest.raises(UserError, match="at most 128 channels, these have 200"):
        choose_engine("dali", CPU, Spectra())


def test_an_error_that_is_not_of_an_image_is_not_retried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_toolkit.views.dali_engine import DaliLoader  # imports DALI

    tries = []

    def broken(self: DaliLoader) -> None:
        self._feed()
        tries.append(self)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(DaliLoader, "_run", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        _batches("dali", Ramps(), views(ViewGroup(size=16)))
    assert len(tries) == 2


def test_an_image_that_is_not_what_the_data_set_says_is_named() -> None:
    class Wrong(Ramps):
        def image(self, index: int) -> np.ndarray:
            return np.zeros((8, 8, 2), np.uint8)

    with pytest.raises(UserError, match="has 2 channels of uint8, not 3 of uint8"):
        _batches("dali", Wrong(), views(ViewGroup(size=16)))
