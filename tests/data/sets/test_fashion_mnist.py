import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.sets.fashion_mnist import DEBIAN_ROOT
from ssl_toolkit.errors import UserError


def idx(array, magic):
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write(root: Path, part: str, images, labels, zipped=False):
    for kind, data in (("images-idx3", idx(images, 0x803)), ("labels-idx1", idx(labels, 0x801))):
        name = root / f"{part}-{kind}-ubyte"
        if zipped:
            name.with_name(name.name + ".gz").write_bytes(gzip.compress(data))
        else:
            name.write_bytes(data)


@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 480), ("t10k", 50)):
        labels = rng.permutation(np.arange(count) % 10)
        arrays[part] = (rng.integers(0, 256, (count, 28, 28)).astype(np.uint8), labels)
        write(tmp_path, part, *arrays[part], zipped=part == "t10k")
    return tmp_path, arrays


def fashion(root, split="train"):
    return build_dataset({"name": "fashion_mnist", "root": str(root)}, split)


def test_splits_are_those_of_the_files(made):
    root, arrays = made
    train, val, test = (fashion(root, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (440, 40, 50)
    assert train.in_channels == 1
    assert train.image(0).shape == (28, 28, 1)
    assert np.array_equal(test.images[..., 0], arrays["t10k"][0])
    assert np.array_equal(test.labels(), arrays["t10k"][1])
    assert np.bincount(val.labels()).tolist() == [4] * 10
    pairs = {image.tobytes(): int(label) for image, label in zip(*arrays["train"])}
    joined = [(d.image(i).tobytes(), d.label(i)) for d in (train, val) for i in range(len(d))]
    assert dict(joined) == pairs
    assert len(joined) == 480
    assert fashion(root).fingerprint() == train.fingerprint() != val.fingerprint()


def test_gzipped_and_plain_files_are_the_same(made, tmp_path_factory):
    root, arrays = made
    other = tmp_path_factory.mktemp("gz")
    write(other, "train", *arrays["train"], zipped=True)
    assert fashion(other).fingerprint() == fashion(root).fingerprint()


def damage(root, name, change):
    path = root / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "needle"),
    [
        ("train-images-idx3-ubyte", lambda raw: raw[:-1], "its header says 480x28x28"),
        ("train-images-idx3-ubyte", lambda raw: raw + b"x", "its header says"),
        ("train-images-idx3-ubyte", lambda raw: raw[:5], "cut short"),
        ("train-images-idx3-ubyte", lambda raw: b"", "cut short"),
        ("train-images-idx3-ubyte", lambda raw: b"\0\0\x08\x01" + raw[4:], "magic number"),
        ("train-images-idx3-ubyte", lambda raw: idx(np.zeros((480, 14, 14)), 0x803), "14x14"),
        ("train-images-idx3-ubyte", lambda raw: idx(np.zeros((9, 28, 28)), 0x803), "9 images"),
        ("train-labels-idx1-ubyte", lambda raw: raw[:-1] + b"\x0a", "label 10"),
        ("train-labels-idx1-ubyte", lambda raw: raw[:-1], "its header says 480"),
    ],
)
def test_files_that_are_not_what_they_say(made, name, change, needle):
    root, _ = made
    damage(root, name, change)
    with pytest.raises(UserError, match=needle) as caught:
        fashion(root)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:40], lambda raw: b"no gzip", lambda raw: raw[:30] + b"??" + raw[32:]]
)
def test_damaged_gzip(made, change):
    root, _ = made
    damage(root, "t10k-images-idx3-ubyte.gz", change)
    with pytest.raises(UserError, match=r"cannot read .*t10k-images-idx3-ubyte\.gz"):
        fashion(root, "test")


def test_missing_files_name_the_folder_and_the_package(tmp_path):
    with pytest.raises(UserError, match="dataset-fashion-mnist") as caught:
        fashion(tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)
    assert "data.root=PATH" in str(caught.value)


def test_one_channel_of_statistics(made):
    with pytest.raises(UserError, match="channels"):
        build_dataset({"name": "fashion_mnist", "root": str(made[0]), "mean": [0.5] * 3, "std": [0.5] * 3}, "train")


@pytest.mark.skipif(not Path(DEBIAN_ROOT).is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_real_files():
    train, val, test = (build_dataset({"name": "fashion_mnist"}, s) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (55000, 5000, 10000)
    assert np.bincount(val.labels()).tolist() == [500] * 10
    pixels = train.images / np.float32(255)
    assert pixels.mean(dtype=np.float64) == pytest.approx(train.config.mean[0], abs=5e-4)
    assert pixels.std(dtype=np.float64) == pytest.approx(train.config.std[0], abs=5e-4)
