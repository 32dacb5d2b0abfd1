"""Folders of images: labelled, flat, nested and split layouts, masks, and what can be wrong with them."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.layout import find_images, held_out
from ssl_toolkit.data.sets.folder import FolderDataset
from ssl_toolkit.errors import UserError


def put(root: Path, *names: str, size=(6, 4)):
    """A small image at each path; its colour is its own."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((*size, 3), sum(name.encode()) % 256, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path, quality=95)
    return root


def many(prefix, count, suffix="jpg"):
    return [f"{prefix}{i:03d}.{suffix}" for i in range(count)]


def folder(root, split="train", **options):
    data = build_dataset({"name": "folder", "root": str(root), **options}, split)
    assert isinstance(data, FolderDataset)
    return data


def paths(data):
    return {str(data.path(i)) for i in range(len(data))}


def fails(root, split="train", needle="", **options):
    with pytest.raises(UserError) as caught:
        folder(root, split, **options)
    line = str(caught.value)
    assert needle in line
    assert "\n" not in line
    return line


@pytest.fixture
def labelled(tmp_path):
    return put(tmp_path / "pets", *many("cat/", 30), *many("dog/", 30, "png"), *many("dog/more/", 10))


def test_labelled_folders(labelled):
    train, val, test = (folder(labelled, split) for split in ("train", "val", "test"))
    assert train.classes == val.classes == ("cat", "dog")
    assert train.name == "folder"
    assert paths(val) == paths(test)
    assert not paths(train) & paths(val)
    assert len(train) + len(val) == 70
    for data in (train, val):
        assert [data.classes[k] for k in data.labels()] == [data.relative(i).split("/")[0] for i in range(len(data))]
        assert data.labels().tolist() == [data.label(i) for i in range(len(data))]
    assert train.image(0).shape == (6, 4, 3)
    assert train.mask_classes is None


def test_labels_can_be_left_out_or_demanded(labelled, tmp_path):
    assert folder(labelled, labels="none").classes is None
    with pytest.raises(NotImplementedError):
        folder(labelled, labels="none").labels()
    single = put(tmp_path / "single", *many("only/", 12))
    assert folder(single).classes is None
    assert folder(single, labels="folders").classes == ("only",)
    put(labelled, "stray.jpg")
    assert folder(labelled).classes is None
    fails(labelled, needle="stray.jpg", labels="folders")


def test_flat_and_nested_unlabelled(tmp_path):
    flat = put(tmp_path / "flat", *many("", 40))
    nested = put(tmp_path / "nested", *many("a/b/c/", 20), *many("", 20))
    for root in (flat, nested):
        data = folder(root)
        assert data.classes is None
        assert len(data) + len(folder(root, "val")) == 40


def test_which_files_count(tmp_path):
    root = put(tmp_path, "a.JPG", "b.jpeg", "c.png", "d.bmp", "e.webp", "f.TIFF", "g.gif", "sub/.hidden.jpg")
    put(root, ".thumbnails/t.jpg", "sub/._h.jpg")
    (root / "notes.txt").write_text("no image")
    assert find_images(root) == ["a.JPG", "b.jpeg", "c.png", "d.bmp", "e.webp", "f.TIFF", "g.gif"]


def test_arrays_are_images_where_there_are_no_others(tmp_path):
    for name in ("a/1.npy", "a/2.npy", "b/3.NPY", "b/.hidden.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.full((6, 4, 5), 7, np.uint8))
    assert find_images(tmp_path) == ["a/1.npy", "a/2.npy", "b/3.NPY"]
    data = folder(tmp_path, in_channels=5, mean=[0.5] * 5, std=[0.2] * 5, val_fraction=0.0)
    assert data.classes == ("a", "b")
    assert data.image(0).shape == (6, 4, 5)
    put(tmp_path, "a/4.png")
    assert find_images(tmp_path) == ["a/4.png"]  # then they are labels or features


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "far", "x.jpg")
    root = put(tmp_path / "root", "a/y.jpg")
    (root / "b").symlink_to(tmp_path / "far", target_is_directory=True)
    (root / "a" / "back").symlink_to(root, target_is_directory=True)
    assert find_images(root) == ["a/y.jpg", "b/x.jpg"]


def test_links_between_two_folders_are_no_circle(tmp_path):
    root = put(tmp_path, "a/x.jpg", "b/y.jpg")
    (root / "a" / "to_b").symlink_to(root / "b", target_is_directory=True)
    (root / "b" / "to_a").symlink_to(root / "a", target_is_directory=True)
    assert find_images(root) == ["a/to_b/y.jpg", "a/x.jpg", "b/to_a/x.jpg", "b/y.jpg"]


def test_splits_by_other_names_are_pointed_out(tmp_path):
    cases = {
        "one": (("train", "valid", "test"), "valid", "val"),
        "two": (("train", "valid"), "valid", "val"),
        "three": (("Train", "Test"), "Test", "test"),
        "four": (("Training", "Validation"), "Training", "train"),
    }
    for name, (folders, wrong, right) in cases.items():
        root = put(tmp_path / name, *(f"{folder}/{c}/{i}.jpg" for folder in folders for c in "ab" for i in range(4)))
        line = fails(root, needle=f"{root / wrong} looks like a split")
        assert f"rename it to {right}" in line
        assert ("data.labels=folders" in line) == (name != "one")
    assert folder(tmp_path / "three", labels="folders").classes == ("Test", "Train")
    lone = put(tmp_path / "lone", *many("bus/", 5), *many("car/", 5), *many("Testing/", 5))
    assert folder(lone).classes == ("Testing", "bus", "car")


def test_names_of_any_script(tmp_path):
    root = put(tmp_path, "größe/图 1.jpg", "größe/b.jpg", "zwei teile/c.d.jpg")
    data = folder(root, val_fraction=0.0)
    assert data.classes == ("größe", "zwei teile")
    assert len(data) == 3
    assert {data.relative(i) for i in range(3)} == {"größe/b.jpg", "größe/图 1.jpg", "zwei teile/c.d.jpg"}
    assert data.image(0).shape == (6, 4, 3)


def test_split_folders(tmp_path):
    root = put(tmp_path, *many("train/a/", 6), *many("train/b/", 6), *many("val/a/", 3), *many("val/b/", 2))
    put(root, *many("test/b/", 4), *many("val/b/", 2))
    train, val, test = (folder(root, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (12, 5, 4)
    assert train.classes == val.classes == test.classes == ("a", "b")
    assert test.labels().tolist() == [1] * 4  # numbered as in training, though a is missing here
    assert train.folder == root / "train"


def test_each_split_is_labelled_or_not(tmp_path):
    root = put(tmp_path, *many("train/", 12), *many("val/a/", 3), *many("val/b/", 3))
    assert folder(root).classes is None
    assert folder(root, "val").classes == ("a", "b")
    other = put(tmp_path / "other", *many("train/a/", 3), *many("train/b/", 3), *many("val/", 12))
    assert folder(other).classes == ("a", "b")
    assert folder(other, "val").classes is None


def test_splits_that_are_missing(tmp_path):
    both = put(tmp_path / "both", *many("train/", 12), *many("val/", 3))
    assert paths(folder(both, "test")) == paths(folder(both, "val")) == {str(both / name) for name in many("val/", 3)}
    lone_val = put(tmp_path / "lone", *many("val/", 3))
    line = fails(lone_val, "test", "no test/")
    assert "val/" in line
    only_test = put(tmp_path / "only", *many("test/", 3))
    assert len(folder(only_test, "test")) == 3
    fails(only_test, "train", "which has test/")
    fails(only_test, "val", "which has test/")


def test_a_training_folder_alone_holds_out(tmp_path):
    root = put(tmp_path / "one", *many("train/", 50))
    train, val, test = (folder(root, split) for split in ("train", "val", "test"))
    assert len(train) + len(val) == 50
    assert paths(val) == paths(test)
    assert not paths(train) & paths(val)
    put(root, *many("test/", 7))
    assert len(folder(root, "test")) == 7
    assert paths(folder(root, "val")) == paths(val)
    assert paths(folder(root)) == paths(train)


def test_a_class_named_train_is_a_class(tmp_path):
    root = put(tmp_path, *many("train/", 9), *many("bus/", 9), *many("car/", 9))
    assert folder(root).classes == ("bus", "car", "train")


def test_holding_out_is_stable_and_near_its_share():
    names = [f"{i:05d}.jpg" for i in range(5000)]
    out = held_out(names, 0.1)
    assert 430 < len(out) < 570
    assert held_out(names[:3000], 0.1) == {n for n in out if n < "03000.jpg"}
    assert out < held_out(names, 0.2)
    assert held_out(names, 0.0) == set()
    assert len(held_out(names[:2], 1e-9)) == 1


def test_holding_out_does_not_depend_on_where_the_folder_is(tmp_path):
    first, second = put(tmp_path / "x", *many("", 40)), put(tmp_path / "y", *many("", 40))
    names = [{d.relative(i) for i in range(len(d))} for d in (folder(first, "val"), folder(second, "val"))]
    assert names[0] == names[1]


def test_train_and_val_must_not_overlap(tmp_path):
    root = put(tmp_path / "root", *many("train/a/", 3), *many("train/b/", 3))
    (root / "val").symlink_to(root / "train", target_is_directory=True)
    for split in ("train", "val"):
        line = fails(root, split, "the same images")
        assert "val" in line
        assert "train" in line
    (root / "val").unlink()
    (root / "val").symlink_to(root / "train" / "a", target_is_directory=True)
    fails(root, "val", "the same images")


def test_classes_that_training_does_not_know(tmp_path):
    root = put(tmp_path, *many("train/cat/", 3), *many("train/dog/", 3), *many("val/cats/", 3), *many("val/dog/", 3))
    line = fails(root, "val", "'cats'")
    assert "did you mean 'cat'" in line
    assert "data.labels=none" in line
    assert folder(root, "val", labels="none").classes is None


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=PATH"):
        build_dataset({"name": "folder"}, "train")
    with pytest.raises(UserError, match=r"data\.root=PATH"):
        build_dataset({"name": "folder", "root": None}, "train")
    assert "does not exist" in fails(tmp_path / "nowhere", needle=str(tmp_path / "nowhere"))
    file = tmp_path / "file.jpg"
    file.write_bytes(b"x")
    fails(file, needle="is not a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert ".jpg" in fails(empty, needle=f"no images in {empty}")
    (tmp_path / "half" / "val").mkdir(parents=True)
    put(tmp_path / "half", "train/a.jpg", "train/b.jpg")
    fails(tmp_path / "half", "val", f"no images in {tmp_path / 'half' / 'val'}")


def test_too_few_to_hold_out(tmp_path):
    root = put(tmp_path, "a.jpg")
    fails(root, "train", "val_fraction")
    assert len(folder(root, "train", val_fraction=0.0)) == 1
    fails(root, "val", "val_fraction=0.0", val_fraction=0.0)
    two = put(tmp_path / "two", "a.jpg", "b.jpg")
    assert len(folder(two)) == len(folder(two, "val")) == 1


def test_folders_that_cannot_be_read(labelled, monkeypatch):
    real = os.scandir

    def locked(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", locked)
    line = fails(labelled, needle="cannot read")
    assert str(labelled / "dog") in line


def test_corrupt_images_are_named_when_read(labelled):
    data = folder(labelled)
    data.path(3).write_bytes(data.path(3).read_bytes()[:40])
    with pytest.raises(UserError, match="cannot decode") as caught:
        data.image(3)
    assert str(data.path(3)) in str(caught.value)
    data.path(4).unlink()
    with pytest.raises(UserError, match="cannot read"):
        data.image(4)


def test_gray(labelled):
    data = folder(labelled, in_channels=1)
    assert data.image(0).shape == (6, 4, 1)
    assert data.in_channels == 1
    assert data.config.mean == [0.449]
    assert data.config.std == [0.226]
    assert folder(labelled, in_channels=1, mean=[0.3], std=[0.1]).config.mean == [0.3]


def test_fingerprint_follows_names_and_sizes(labelled):
    before = folder(labelled).fingerprint()
    assert folder(labelled).fingerprint() == before != folder(labelled, "val").fingerprint()
    first = folder(labelled).path(0)
    first.write_bytes(first.read_bytes() + b"x")
    changed = folder(labelled).fingerprint()
    assert changed != before
    first.rename(first.with_name("cat-renamed-000.jpg"))
    assert folder(labelled).fingerprint() != changed


def with_masks(tmp_path, inside=False, split=""):
    images = put(tmp_path / "data", *(f"{split}x/{i}.jpg" for i in range(6)), *(f"{split}y/{i}.jpg" for i in range(6)))
    masks = images / "masks" if inside else tmp_path / "masks"
    for name in find_images(images):
        path = (masks / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.full((6, 4), 255, dtype=np.uint8)
        values[:3, :2] = int(Path(name).stem) % 3
        PIL.Image.fromarray(values).save(path)
    return images, {"masks": str(masks), "mask_classes": ["ground", "leaf", "fruit"]}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("split", ["", "train/"])
def test_masks(tmp_path, inside, split):
    root, options = with_masks(tmp_path, inside, split)
    train, val = folder(root, **options), folder(root, "val", **options)
    assert train.mask_classes == ("ground", "leaf", "fruit")
    assert train.classes == ("x", "y")
    assert len(train) + len(val) == 12
    for data in (train, val):
        for i in range(len(data)):
            mask = data.mask(i)
            assert mask.shape == (6, 4)
            assert mask.dtype == np.uint8
            assert (mask[:3, :2] == int(data.path(i).stem) % 3).all()
            assert (mask[3:] == 255).all()


def test_masks_that_do_not_fit(tmp_path):
    root, options = with_masks(tmp_path)
    data = folder(root, **options)
    path = Path(options["masks"]) / Path(data.relative(0)).with_suffix(".png")

    def line(values):
        PIL.Image.fromarray(values).save(path)
        with pytest.raises(UserError) as caught:
            data.mask(0)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "5x4" in line(np.zeros((5, 4), dtype=np.uint8))
    assert "value 3" in line(np.full((6, 4), 3, dtype=np.uint8))
    assert "type RGB" in line(np.zeros((6, 4, 3), dtype=np.uint8))
    path.unlink()
    with pytest.raises(UserError, match="no mask"):
        data.mask(0)
    with pytest.raises(NotImplementedError):
        folder(root).mask(0)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"labels": "folder"}, "did you mean 'folders'"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": -0.1}, "val_fraction"),
        ({"in_channels": 4}, "in_channels"),
        ({"mean": [0.5], "std": [0.5]}, "in_channels is 3"),
        ({"masks": "somewhere"}, "mask_classes"),
        ({"mask_classes": ["a"]}, "masks"),
        ({"masks": "/nowhere/masks", "mask_classes": ["a"]}, "data.masks=/nowhere/masks"),
        ({"mask_classes": ["c"] * 256, "masks": "m"}, "256 names"),
        ({"eval_size": 300}, "eval_size"),
        ({"rot": "x"}, "did you mean 'root'"),
        ({"val_fraction": "many"}, "val_fraction"),
    ],
)
def test_bad_options(labelled, options, needle):
    fails(labelled, needle=needle, **options)
