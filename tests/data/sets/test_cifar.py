import pickle

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees


def build(root, split="train", name="cifar10", **options):
    return build_dataset({"name": name, "root": str(root), **options}, split)


def pixels(planes):
    """Row-major planes red, green, blue, as the publisher describes the batches; by hand."""
    image = np.empty((32, 32, 3), np.uint8)
    for channel in range(3):
        for row in range(32):
            start = channel * 1024 + row * 32
            image[row, :, channel] = planes[start : start + 32]
    return image


@pytest.mark.parametrize(("name", "kind", "classes"), [("cifar10", "CIFAR10", 10), ("cifar100", "CIFAR100", 100)])
def test_splits_pixels_and_labels(tmp_path, monkeypatch, name, kind, classes):
    written = trees.cifar(tmp_path, monkeypatch, kind, per_batch=40)
    splits = {split: build(tmp_path, split, name) for split in ("train", "val", "test")}
    truth = {"train": {}, "test": {}}
    for file, (planes, labels) in written.items():
        part = truth["test" if "test" in file else "train"]
        part.update({pixels(p).tobytes(): label for p, label in zip(planes, labels)})
    found = {
        split: {data.image(i).tobytes(): data.label(i) for i in range(len(data))} for split, data in splits.items()
    }
    assert found["test"] == truth["test"]
    assert {**found["train"], **found["val"]} == truth["train"]
    assert not set(found["train"]) & set(found["val"])
    assert len(splits["train"]) + len(splits["val"]) == len(truth["train"])
    assert 0 < len(splits["val"]) < 0.3 * len(truth["train"])
    data = splits["train"]
    assert data.classes == tuple(f"kind {i}" for i in range(classes))
    assert data.image(0).shape == (32, 32, 3)
    assert data.image(0).flags["C_CONTIGUOUS"]
    assert data.labels().tolist() == [data.label(i) for i in range(len(data))]
    assert data.encoded(0) is None
    assert build(tmp_path, "train", name).fingerprint() == data.fingerprint() != splits["val"].fingerprint()


def test_the_folder_itself_under_any_name(tmp_path, monkeypatch):
    trees.cifar(tmp_path, monkeypatch)
    before = build(tmp_path, "test").fingerprint()
    moved = (tmp_path / "cifar-10-batches-py").rename(tmp_path / "mine")
    assert build(moved, "test").fingerprint() == before


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise AssertionError('unpickled')",))


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_batch_of_another_md5_is_never_opened(tmp_path, monkeypatch, file):
    trees.cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    for split in ("train", "test"):
        with pytest.raises(UserError, match="MD5") as caught:
            build(tmp_path, split)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_batches(tmp_path, monkeypatch):
    trees.cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.unlink()
    with pytest.raises(UserError, match=f"no {path}.*data.download=true"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("options", "needle"),
    [({"val_fraction": 1.0}, "val_fraction"), ({"mean": [0.5], "std": [0.5]}, "3"), ({"size": 3}, "unknown key")],
)
def test_bad_options(tmp_path, options, needle):
    with pytest.raises(UserError, match=needle):
        build(tmp_path, **options)


def test_nothing_held_out_leaves_no_val(tmp_path, monkeypatch):
    trees.cifar(tmp_path, monkeypatch)
    assert len(build(tmp_path, val_fraction=0.0)) == 60
    with pytest.raises(UserError, match=r"val_fraction=0\.0 leaves none for val"):
        build(tmp_path, "val", val_fraction=0.0)
