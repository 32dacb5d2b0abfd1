import pickle

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees


def build(root, split="train", **options):
    return build_dataset({"name": "stl10", "root": str(root), **options}, split)


def contents(data):
    return {data.image(i).tobytes() for i in range(len(data))}


@pytest.fixture
def made(tmp_path):
    return tmp_path, trees.stl10(tmp_path)


def test_splits_pixels_and_labels(made):
    root, parts = made
    train, val, test = (build(root, split) for split in ("train", "val", "test"))
    images, labels = parts["test"]
    assert np.array_equal(np.stack([test.image(i) for i in range(len(test))]), images)
    assert test.labels().tolist() == (labels.astype(int) - 1).tolist()
    truth = {image.tobytes(): int(label) - 1 for image, label in zip(*parts["train"])}
    joined = {d.image(i).tobytes(): d.label(i) for d in (train, val) for i in range(len(d))}
    assert joined == truth
    assert len(train) + len(val) == 40
    assert len(val) >= 1
    assert train.classes[0] == "airplane"
    assert len(train.classes) == 10
    assert train.fingerprint() == build(root).fingerprint() != val.fingerprint()


def test_torchvision_reads_the_same(made, monkeypatch):
    from torchvision.datasets import STL10

    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    root, _ = made
    theirs, ours = STL10(str(root), split="test"), build(root, "test")
    for i in range(len(ours)):
        image, label = theirs[i]
        assert np.array_equal(np.asarray(image), ours.image(i))
        assert label == ours.label(i)


def test_unlabelled_images_join_training_without_labels(made):
    root, parts = made
    plain, train, val = build(root), build(root, unlabeled=True), build(root, "val", unlabeled=True)
    assert train.classes is None
    with pytest.raises(NotImplementedError, match="no labels"):
        train.labels()
    assert contents(train) == {image.tobytes() for image in parts["unlabeled"][0]} | contents(plain)
    assert len(train) == 15 + len(plain)
    assert contents(val) == contents(build(root, "val"))
    assert val.classes is not None
    assert not contents(train) & contents(val)
    assert train.fingerprint() != plain.fingerprint()


def test_a_copy_for_a_worker_does_not_carry_the_pixels(made):
    data = build(made[0], unlabeled=True)
    first = data.image(0)
    packed = pickle.dumps(data)
    assert len(packed) < 10_000
    assert np.array_equal(pickle.loads(packed).image(0), first)
    first[:] = 0  # an image is the caller's own
    assert data.image(0).any()


@pytest.mark.parametrize(
    ("file", "change", "needle"),
    [
        ("train_X.bin", lambda raw: raw[:-1], "whole number"),
        ("train_X.bin", lambda raw: raw[: 3 * 96 * 96], "40 labels"),
        ("train_X.bin", lambda raw: b"", "0 bytes"),
        ("train_y.bin", lambda raw: raw[:-1], "39 labels"),
        ("train_y.bin", lambda raw: b"\0" + raw[1:], "label 0"),
        ("train_y.bin", lambda raw: b"\x0b" + raw[1:], "label 11"),
        ("train_y.bin", None, "cannot read"),
        ("unlabeled_X.bin", None, "data.download=true"),
    ],
)
def test_files_that_are_not_what_they_should_be(made, file, change, needle):
    path = made[0] / "stl10_binary" / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=needle) as caught:
        build(made[0], unlabeled=True)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labelled_training_needs_no_unlabelled_file(made):
    (made[0] / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert len(build(made[0])) + len(build(made[0], "val")) == 40
