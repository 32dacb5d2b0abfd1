import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees


def build(root, split="train", **options):
    return build_dataset({"name": "oxford_pets", "root": str(root), **options}, split)


def names(data):
    return [data.path(i).stem for i in range(len(data))]


@pytest.fixture
def made(tmp_path):
    return tmp_path, *trees.oxford_pets(tmp_path)


def test_splits_and_labels(made):
    root, breeds, _ = made
    train, val, test = (build(root, split) for split in ("train", "val", "test"))
    assert train.classes == val.classes == test.classes == ("Abyssinian", "American Bulldog", "Birman")
    written = dict(zip(("Abyssinian", "american_bulldog", "Birman"), range(3)))
    for data in (train, val, test):
        assert data.labels().tolist() == [written[breeds[name]] for name in names(data)]
    assert not set(names(train)) & set(names(val))
    assert set(names(train) + names(val)) == {f"{b}_{i}" for b in trees.BREEDS for i in range(1, 13)}
    assert set(names(test)) == {f"{b}_{i}" for b in trees.BREEDS for i in range(100, 103)}
    assert len(val) >= 1


def test_torchvision_reads_the_same(made):
    from torchvision.datasets import OxfordIIITPet

    theirs, ours = OxfordIIITPet(str(made[0]), split="test"), build(made[0], "test")
    assert tuple(theirs.classes) == ours.classes
    assert [theirs[i][1] for i in range(len(theirs))] == ours.labels().tolist()


def test_masks(made):
    root, _, trimaps = made
    data = build(root, "val")
    assert data.mask_classes == ("background", "pet")
    for i, name in enumerate(names(data)):
        mask = data.mask(i)
        assert mask.shape == data.image(i).shape[:2] == (6, 8)
        assert mask.dtype == np.uint8
        for row in range(6):
            for column in range(8):
                assert mask[row, column] == {1: 1, 2: 0, 3: 255}[trimaps[name][row, column]]


def test_masks_that_do_not_fit(made):
    data = build(made[0])
    path = made[0] / "oxford-iiit-pet" / "annotations" / "trimaps" / f"{names(data)[0]}.png"

    def line(values):
        PIL.Image.fromarray(values).save(path)
        with pytest.raises(UserError) as caught:
            data.mask(0)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "value 0" in line(np.zeros((6, 8), np.uint8))
    assert "value 255" in line(np.full((6, 8), 255, np.uint8))
    assert "8x6" in line(np.ones((8, 6), np.uint8))
    path.unlink()
    with pytest.raises(UserError, match="no mask"):
        data.mask(0)


@pytest.mark.parametrize(
    ("file", "lines", "needle"),
    [
        ("trainval.txt", ["Abyssinian_1 1 1"], "line 1: 3 columns"),
        ("trainval.txt", ["Abyssinian_1 38 1 1"], "'38'"),
        ("trainval.txt", ["Abyssinian_1 0 1 1"], "'0'"),
        ("trainval.txt", ["Abyssinian_1 cat 1 1"], "'cat'"),
        ("trainval.txt", ["Abyssinian_1 1 1 1", "Birman_1 1 1 1"], "both Abyssinian and Birman"),
        ("trainval.txt", ["Abyssinian_1 2 1 1"], "no image of breed 1"),
        ("trainval.txt", ["# nothing"], "is empty"),
        ("test.txt", ["Birman_100 1 1 1"], "differently"),
        ("test.txt", ["Siamese_100 9 1 1"], "differently"),
        ("test.txt", ["Birman_999 3 1 1"], "Birman_999.jpg"),
        ("test.txt", None, "cannot read"),
    ],
)
def test_lists_that_are_not_right(made, file, lines, needle):
    path = made[0] / "oxford-iiit-pet" / "annotations" / file
    path.unlink()
    if lines is not None:
        trees.write_text(path, lines)
    with pytest.raises(UserError, match=needle) as caught:
        build(made[0], "test")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
