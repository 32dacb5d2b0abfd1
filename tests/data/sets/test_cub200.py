import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees


def build(root, split="train", **options):
    return build_dataset({"name": "cub200", "root": str(root), **options}, split)


def names(data):
    return [data.relative(i) for i in range(len(data))]


def test_splits_labels_and_boxes(tmp_path):
    truth = trees.cub200(tmp_path)
    train, val, test = (build(tmp_path, split) for split in ("train", "val", "test"))
    assert train.classes == train.object_classes
    assert train.classes == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    assert set(names(test)) == {name for name, row in truth.items() if not row[1]}
    assert set(names(train) + names(val)) == {name for name, row in truth.items() if row[1]}
    assert not set(names(train)) & set(names(val))
    assert len(val) >= 1
    for data in (train, val, test):
        for i, name in enumerate(names(data)):
            number, _, left, top, width, height = truth[name]
            assert data.label(i) == number - 1
            found = data.objects(i)
            assert found.boxes.tolist() == [[left, top, left + width, top + height]]
            assert found.labels.tolist() == [number - 1]
            assert found.ignore.tolist() == [False]
            assert (str(found.boxes.dtype), str(found.labels.dtype)) == ("float32", "int64")
    assert train.image(0).shape == (12, 10, 3)


def test_the_folder_itself(tmp_path):
    trees.cub200(tmp_path)
    assert names(build(tmp_path / "CUB_200_2011")) == names(build(tmp_path))


def first(lines, line):
    return [line, *lines[1:]]


@pytest.mark.parametrize(
    ("file", "change", "needle"),
    [
        ("images.txt", lambda lines: first(lines, "1"), "line 1: 1 columns"),
        ("images.txt", lambda lines: [], "is empty"),
        ("image_class_labels.txt", lambda lines: lines[1:], "no line for image"),
        ("image_class_labels.txt", lambda lines: [f"{line.split()[0]} 4" for line in lines], "'4'"),
        ("train_test_split.txt", lambda lines: [f"{line.split()[0]} 2" for line in lines], "'2'"),
        ("train_test_split.txt", lambda lines: [f"{line.split()[0]} 0" for line in lines], "no image for train"),
        ("bounding_boxes.txt", lambda lines: first(lines, "1 1.0 2.0 3.0"), "line 1: 4 columns"),
        ("bounding_boxes.txt", lambda lines: first(lines, "1 1.0 2.0 wide 4.0"), "no number"),
        ("bounding_boxes.txt", lambda lines: first(lines, "1 1.0 2.0 0.0 4.0"), "image 1 is empty"),
        ("bounding_boxes.txt", lambda lines: first(lines, "1 nan 2.0 3.0 4.0"), "image 1 is empty"),
        ("classes.txt", lambda lines: lines[1:], "from 1 up"),
        ("classes.txt", None, "cannot read"),
    ],
)
def test_files_that_are_not_right(tmp_path, file, change, needle):
    trees.cub200(tmp_path)
    path = tmp_path / "CUB_200_2011" / file
    lines = path.read_text().splitlines()
    path.unlink()
    if change is not None:
        trees.write_text(path, change(lines))
    with pytest.raises(UserError, match=needle) as caught:
        build(tmp_path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"data\.root is not set"):
        build_dataset({"name": "cub200"}, "train")
    with pytest.raises(UserError, match="CUB_200_2011") as caught:
        build(tmp_path)
    assert "download=true" not in str(caught.value)
    trees.cub200(tmp_path)
    (tmp_path / "CUB_200_2011" / "images" / names(build(tmp_path))[0]).unlink()
    with pytest.raises(UserError, match=r"images\.txt lists"):
        build(tmp_path)
