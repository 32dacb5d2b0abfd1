import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees


def build(root, split="train", **options):
    return build_dataset({"name": "flowers102", "root": str(root), **options}, split)


def numbers(data):
    return [int(data.path(i).stem.removeprefix("image_")) for i in range(len(data))]


def test_splits_and_labels_are_the_publishers(tmp_path):
    labels, ids = trees.flowers102(tmp_path)
    for split, part in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        data = build(tmp_path, split)
        assert numbers(data) == ids[part].tolist()
        assert data.labels().tolist() == [labels[n] - 1 for n in numbers(data)]
        assert len(data.classes) == len(set(data.classes)) == 102
        assert data.image(0).shape == (6, 4, 3)
    assert build(tmp_path).classes[0] == "pink primrose"
    assert build(tmp_path).classes[101] == "blackberry lily"


def test_the_folder_itself(tmp_path):
    trees.flowers102(tmp_path, inner="mine")
    assert len(build(tmp_path / "mine", "test")) == 9


def save(path, **arrays):
    from scipy.io import savemat

    savemat(path, arrays)


@pytest.mark.parametrize(
    ("file", "damage", "needle"),
    [
        ("imagelabels.mat", lambda p: p.write_bytes(p.read_bytes()[:150]), "cannot read"),
        ("imagelabels.mat", lambda p: p.write_bytes(b"x" * 500), "cannot read"),
        ("imagelabels.mat", lambda p: save(p, other=np.ones(3)), "no array 'labels'"),
        ("imagelabels.mat", lambda p: save(p, labels=np.full(20, 0.5)), "not integers"),
        ("imagelabels.mat", lambda p: save(p, labels=np.full(20, 103)), "103"),
        ("imagelabels.mat", lambda p: save(p, labels=np.full(20, 0)), "labels from 0"),
        ("imagelabels.mat", lambda p: save(p, labels=np.full(3, 5)), "labels of 1 to 3"),
        ("setid.mat", lambda p: save(p, trnid=np.array([0, 1]), valid=np.array([2]), tstid=np.array([3])), "0 to 1"),
        ("setid.mat", lambda p: save(p, trnid=np.zeros((1, 0))), "0 values"),
        ("setid.mat", lambda p: p.unlink(), "setid.mat"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, file, damage, needle):
    trees.flowers102(tmp_path)
    damage(tmp_path / "flowers-102" / file)
    with pytest.raises(UserError, match=needle) as caught:
        build(tmp_path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_are_missing(tmp_path):
    _, ids = trees.flowers102(tmp_path)
    (tmp_path / "flowers-102" / "jpg" / f"image_{ids['trnid'][0]:05d}.jpg").unlink()
    with pytest.raises(UserError, match=f"image_{ids['trnid'][0]:05d}.jpg"):
        build(tmp_path)
