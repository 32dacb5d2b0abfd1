import json

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.sets import packed
from ssl_toolkit.errors import UserError
from tests.data.trees import put_image

CATEGORIES = [{"supercategory": "x", "id": i, "name": n} for i, n in ((90, "toothbrush"), (1, "person"), (18, "dog"))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))


def rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def entry(number, image, category, box, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, "area": 1.0,
            "segmentation": [rectangle(*box)], **more}  # fmt: skip


def content(names):
    images = [
        {"id": 1000 - i, "file_name": name, "height": 6, "width": 8, "license": 1} for i, name in enumerate(names)
    ]
    crowd = {"counts": [1, 2, 3, 42], "size": [6, 8]}
    annotations = [
        entry(1, 1000, 18, [1, 2, 3, 4]),
        entry(2, 998, 90, [0.5, 0.25, 2.5, 1.5], segmentation=[rectangle(0.5, 0.25, 1, 1.5), rectangle(2, 0.25, 1, 1)]),
        entry(3, 1000, 1, [0, 0, 8, 6], iscrowd=1, segmentation=crowd),
        entry(4, 1000, 1, [1, 1, 0, 5]),  # no area
        entry(6, 1000, 1, [1, 1, 5, 0]),
        entry(5, 1000, 90, [2, 2, 1, 1]),
    ]
    return {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "CC"}], "images": images,
            "annotations": annotations, "categories": CATEGORIES}  # fmt: skip


def tree(root, below="", counts=(5, 3)):
    for part, count in zip(("train2017", "val2017"), counts):
        names = [f"{i * 37 % 101:012d}.jpg" for i in range(count)]
        for name in names:
            put_image(root / below / part / name, size=(6, 8))
        path = root / "annotations" / f"instances_{part}.json"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(content(names)))
    return root


def coco(root, split="train", **options):
    return build_dataset({"name": "coco", "root": str(root), **options}, split)


def fails(needle, action):
    with pytest.raises(UserError) as caught:
        action()
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["", "images"])
def test_objects(tmp_path, below):
    root = tree(tmp_path / "coco", below)
    train, val, test = (coco(tmp_path, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (5, 3, 3)
    assert train.classes is None
    assert train.object_classes == ("person", "dog", "toothbrush")
    truth = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    by_name = {image["file_name"]: image["id"] for image in truth["images"]}
    position = {1: 0, 18: 1, 90: 2}
    total = 0
    for i in range(5):
        wanted = [
            a for a in truth["annotations"] if a["image_id"] == by_name[train.relative(i)] and min(a["bbox"][2:]) > 0
        ]
        boxes, labels, ignore = train.objects(i)
        assert boxes.tolist() == [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in wanted)]
        assert labels.tolist() == [position[a["category_id"]] for a in wanted]
        assert ignore.tolist() == [a["iscrowd"] == 1 for a in wanted]
        assert (boxes.dtype, labels.dtype, ignore.dtype) == (np.float32, np.int64, bool)
        assert train.image(i).shape == (6, 8, 3)
        total += len(boxes)
    assert total == 4


def test_images_alone_are_enough_to_pretrain(tmp_path):
    tree(tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "gone")
    data = coco(tmp_path)
    assert len(data) == 5
    assert data.object_classes is None
    with pytest.raises(NotImplementedError):
        data.objects(0)


def test_the_annotations_are_parsed_once(tmp_path, monkeypatch):
    tree(tmp_path)
    first = coco(tmp_path).objects(0)
    path = tmp_path / "annotations" / "instances_train2017.json"
    with monkeypatch.context() as patched:
        patched.setattr("ssl_toolkit.data.sets.coco_annotations._pack", lambda path: pytest.fail("parsed again"))
        assert np.array_equal(coco(tmp_path).objects(0).boxes, first.boxes)
    (cached,) = (tmp_path / "cache" / "coco").glob("*.npz")
    cached.write_bytes(b"damaged")
    assert np.array_equal(coco(tmp_path).objects(0).boxes, first.boxes)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "annotations": []}))
    assert len(coco(tmp_path).objects(0).boxes) == 0
    path.write_text(json.dumps(whole))
    (tmp_path / "cache" / "coco").rename(tmp_path / "away")
    monkeypatch.setattr(packed, "atomic_path", lambda path: (_ for _ in ()).throw(UserError("cannot write")))
    assert np.array_equal(coco(tmp_path).objects(0).boxes, first.boxes)


def change(key, value):
    def edit(whole):
        whole["annotations"][1][key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "needle"),
    [
        (lambda whole: whole.pop("images"), "'images'"),
        (lambda whole: whole.pop("categories"), "'categories'"),
        (lambda whole: whole["annotations"][0].pop("bbox"), "'bbox'"),
        (change("category_id", 7), "no category_id 7"),
        (change("image_id", 7), "no image_id 7"),
        (change("bbox", [1, 2, 3]), "not an annotation file"),
        (change("bbox", [1, 2, 3, "x"]), "not an annotation file"),
        (lambda whole: whole["images"].append(whole["images"][0]), "given twice"),
        (lambda whole: whole["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
        (None, "not an annotation file"),
    ],
)
def test_annotations_that_are_not_right(tmp_path, edit, needle):
    path = tree(tmp_path) / "annotations" / "instances_train2017.json"
    whole = json.loads(path.read_text())
    if edit is not None:
        edit(whole)
    path.write_text(json.dumps(whole) if edit is not None else "{")
    with pytest.raises(UserError) as caught:
        coco(tmp_path)
    assert needle in str(caught.value)
    assert "instances_train2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing(tmp_path):
    fails("data.root is not set", lambda: build_dataset({"name": "coco"}, "train"))
    fails("no COCO", lambda: coco(tmp_path))
    tree(tmp_path)
    fails("train2014", lambda: coco(tmp_path, year=2014))
    empty = tmp_path / "empty"
    (empty / "train2017").mkdir(parents=True)
    fails("no images", lambda: coco(empty))
