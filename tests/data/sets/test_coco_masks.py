"""Masks of COCO's objects against pycocotools on the same file, and annotations that have none."""

import json
import pickle

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from tests.data.sets.test_coco import coco, tree


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))


def edited(root, edit):
    """The tree with one annotation of its training images changed by ``edit``; its file."""
    path = tree(root) / "annotations" / "instances_train2017.json"
    whole = json.loads(path.read_text())
    edit(whole)
    path.write_text(json.dumps(whole))
    return path


def test_masks_are_those_of_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    root = tree(tmp_path)
    data = coco(root)
    assert data.has_instance_masks
    official = COCO(str(root / "annotations" / "instances_train2017.json"))
    by_name = {image["file_name"]: number for number, image in official.imgs.items()}
    total = 0
    for i in range(len(data)):
        annotations = [a for a in official.imgToAnns[by_name[data.relative(i)]] if min(a["bbox"][2:]) > 0]
        masks = data.instance_masks(i)
        assert masks.dtype == bool
        assert masks.shape == (len(data.objects(i).labels), 6, 8)
        for mask, annotation in zip(masks, annotations):
            assert np.array_equal(mask, official.annToMask(annotation).astype(bool))
        total += len(annotations)
    assert total == 4


def test_rectangles_and_run_lengths_in_closed_form(tmp_path):
    data = coco(tree(tmp_path))
    (index,) = (i for i in range(5) if len(data.objects(i).labels) == 3)
    box, crowd, cell = data.instance_masks(index)
    expected = np.zeros((3, 6, 8), bool)
    expected[0, 2:6, 1:4] = expected[2, 2, 2] = True
    expected[1].T.flat[1:3] = expected[1].T.flat[6:48] = True  # column by column: 1 off, 2 on, 3 off, 42 on
    assert np.array_equal(np.stack([box, crowd, cell]), expected)


def test_compressed_run_lengths(tmp_path):
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    masks = np.asfortranarray(rng.random((6, 8, 3)) < 0.5, dtype=np.uint8)

    def edit(whole):
        rows = [a for a in whole["annotations"] if min(a["bbox"][2:]) > 0]
        for row, mask in zip(rows[1:], np.moveaxis(masks, 2, 0)):
            run = coco_mask.encode(np.asfortranarray(mask))
            row["segmentation"] = {"size": run["size"], "counts": run["counts"].decode()}

    edited(tmp_path, edit)
    data = coco(tmp_path)
    found = [mask for i in range(5) for mask in data.instance_masks(i)]
    for mask in np.moveaxis(masks, 2, 0):
        assert any(np.array_equal(mask.astype(bool), one) for one in found)


def test_a_long_run_in_compressed_form(tmp_path):
    from pycocotools import mask as coco_mask

    from ssl_toolkit.data.sets.coco_masks import _uncompressed

    rng = np.random.default_rng(1)
    for density in (0.001, 0.5, 0.999):
        mask = np.asfortranarray(rng.random((300, 400)) < density, dtype=np.uint8)
        flat = mask.T.ravel()
        changes = np.flatnonzero(np.diff(flat, prepend=0, append=2))
        assert _uncompressed(coco_mask.encode(mask)["counts"].decode()) == np.diff(changes, prepend=0).tolist()


def test_masks_are_read_when_asked_for_and_once(tmp_path, monkeypatch):
    tree(tmp_path)
    folder = tmp_path / "cache" / "coco"
    data = coco(tmp_path)
    assert len(list(folder.glob("*.npz"))) == 1
    first = data.instance_masks(0)
    assert len(list(folder.glob("*.npz"))) == 2
    monkeypatch.setattr("ssl_toolkit.data.sets.coco_masks._pack", lambda path: pytest.fail("made again"))
    assert np.array_equal(coco(tmp_path).instance_masks(0), first)
    handed = pickle.loads(pickle.dumps(data))  # as worker processes get it
    assert np.array_equal(handed.instance_masks(0), first)


def test_there_are_none(tmp_path):
    tree(tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "gone")
    data = coco(tmp_path)
    assert not data.has_instance_masks
    with pytest.raises(NotImplementedError):
        data.instance_masks(0)
    scenes = build_dataset({"name": "digit_scenes", "train_size": 1}, "train")
    assert not scenes.has_instance_masks
    with pytest.raises(NotImplementedError):
        ImageDataset.instance_masks(scenes, 0)


SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], "no polygon of three corners or more"),
        (None, "no polygon of three corners or more"),
        ([[1, 1, 2, 2]], "no polygon of three corners or more"),
        ([[1, 1, 2, 2, 3]], "a polygon with 5 coordinates"),
        ([[1, 1, 2, 2, 3, float("nan")]], "a coordinate that is no number"),
        ([[1, 1, 2, 2, 3, "x"]], "a polygon with"),
        (5, "a polygon with"),
        ({"size": [6, 8], "counts": [1, 2, 3]}, "run lengths of 6 pixels, the image has 48"),
        ({"size": [6, 8], "counts": [-1, 49]}, "run lengths that are none"),
        ({"size": [6, 8], "counts": 5}, "run lengths that are none"),
        ({"size": [6, 8], "counts": ""}, "run lengths of 0 pixels"),
        ({"size": [8, 6], "counts": [0, 48]}, "run lengths of size [8, 6] in an image of [6, 8]"),
    ],
)
def test_annotations_without_a_mask(tmp_path, segmentation, words):
    def edit(whole):
        whole["annotations"][1]["segmentation"] = segmentation

    path = edited(tmp_path, edit)
    data = coco(tmp_path)  # boxes do not need masks
    with pytest.raises(UserError) as caught:
        data.instance_masks(0)
    said = str(caught.value)
    assert words in said
    assert f"{path}: the mask of annotation 2 cannot be used" in said
    assert said.endswith("correct or remove it")
    assert "\n" not in said


def test_polygons_without_an_area_are_left_out(tmp_path):
    def edit(whole):
        whole["annotations"][0]["segmentation"] = [[1, 1, 2, 2], SQUARE]

    edited(tmp_path, edit)
    data = coco(tmp_path)
    (index,) = (i for i in range(5) if len(data.objects(i).labels) == 3)
    expected = np.zeros((6, 8), bool)
    expected[1:3, 1:3] = True
    assert np.array_equal(data.instance_masks(index)[0], expected)


def test_an_image_without_a_size(tmp_path):
    edited(tmp_path, lambda whole: whole["images"][0].pop("height"))
    with pytest.raises(UserError, match=r"instances_train2017\.json has no 'height'"):
        coco(tmp_path).instance_masks(0)
