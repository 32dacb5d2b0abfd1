import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data.trees import put_image, write_text


def tree(parent, named=True):
    """Returns the annotations by file name."""
    root, rng, made = parent / "ADEChallengeData2016", np.random.default_rng(0), {}
    for part, short, count in (("training", "train", 6), ("validation", "val", 3)):
        for i in range(1, count + 1):
            name = f"ADE_{short}_{i:08d}"
            put_image(root / "images" / part / f"{name}.jpg", i, size=(6, 8))
            values = rng.integers(0, 151, (6, 8)).astype(np.uint8)
            path = root / "annotations" / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(values).save(path)
            made[name] = values
    if named:
        rows = [f"{i}\t0.{i:03d}\t{i * 7}\t{i}\tthing{i}, other name{i}\t" for i in range(1, 151)]
        write_text(root / "objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tName", *rows])
    return made


def ade(root, split="train", **options):
    return build_dataset({"name": "ade20k", "root": str(root), **options}, split)


def fails(needle, action):
    with pytest.raises(UserError) as caught:
        action()
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_splits_masks_and_names(tmp_path):
    made = tree(tmp_path)
    train, val, test = (ade(tmp_path, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (6, 3, 3)
    assert train.classes is None
    assert len(train.mask_classes) == 150
    assert (train.mask_classes[0], train.mask_classes[149]) == ("thing1", "thing150")
    for data in (train, val, test):
        for i in range(len(data)):
            values = made[data.path(i).stem]
            mask = data.mask(i)
            assert mask.dtype == np.uint8
            for row in range(6):
                for column in range(8):
                    value = int(values[row, column])
                    assert mask[row, column] == (255 if value == 0 else value - 1)
    assert len(ade(tmp_path / "ADEChallengeData2016")) == 6


def test_without_names_or_annotations(tmp_path):
    tree(tmp_path, named=False)
    assert ade(tmp_path).mask_classes[:2] == ("class 1", "class 2")
    (tmp_path / "ADEChallengeData2016" / "annotations").rename(tmp_path / "gone")
    data = ade(tmp_path)
    assert data.mask_classes is None
    assert data.image(0).shape == (6, 8, 3)
    with pytest.raises(NotImplementedError):
        data.mask(0)


def test_what_is_wrong(tmp_path):
    tree(tmp_path)
    data = ade(tmp_path)
    path = tmp_path / "ADEChallengeData2016" / "annotations" / "training" / f"{data.path(0).stem}.png"
    PIL.Image.fromarray(np.full((6, 8), 151, np.uint8)).save(path)
    line = fails("value 151", lambda: data.mask(0))
    assert str(path) in line
    assert str(data.path(0)) in line
    PIL.Image.fromarray(np.zeros((6, 7), np.uint8)).save(path)
    fails("6x7", lambda: data.mask(0))
    path.unlink()
    fails("no mask", lambda: data.mask(0))
    info = tmp_path / "ADEChallengeData2016" / "objectInfo150.txt"
    info.write_text("Idx,Name\n1,wall\n")
    fails("separated by tabs", lambda: ade(tmp_path))
    info.write_text("Idx\tName\n1\twall\n")
    fails("class 2", lambda: ade(tmp_path))
    info.write_text("")
    fails("objectInfo150.txt", lambda: ade(tmp_path))
    fails("no ADE20K", lambda: ade(tmp_path / "nowhere"))
    fails("data.root is not set", lambda: build_dataset({"name": "ade20k"}, "train"))
    (tmp_path / "ADEChallengeData2016" / "images" / "validation").rename(tmp_path / "validation")
    fails("no images in", lambda: ade(tmp_path, "val"))
