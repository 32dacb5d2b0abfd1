"""PASCAL VOC: roots, lists, masks, boxes, SBD's additions, and what can be wrong."""

import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data.trees import put_image, write_text

PARTS = {"train": 5, "val": 3, "test": 4}
ANNOTATION = """<annotation><folder>VOC</folder><filename>{name}.jpg</filename>
<size><width>8</width><height>6</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><pose>Left</pose>{difficult}
<bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox>{part}</object>"""
PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


def palette_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = PIL.Image.fromarray(values).convert("P")
    picture.putpalette([7 * i % 256 for i in range(768)])
    picture.save(path)


def tree(devkit, year="2012"):
    """Segmentation lists half of what Main lists. Returns the masks by name."""
    root, rng, masks = devkit / f"VOC{year}", np.random.default_rng(0), {}
    for part, count in PARTS.items():
        names = [f"{year}_{part}{i}" for i in range(count)]
        write_text(root / "ImageSets" / "Main" / f"{part}.txt", names)
        write_text(root / "ImageSets" / "Main" / f"cat_{part}.txt", [f"{name} -1" for name in names])
        write_text(root / "ImageSets" / "Segmentation" / f"{part}.txt", names[: count // 2 + 1])
        for name in names:
            put_image(root / "JPEGImages" / f"{name}.jpg", size=(6, 8))
            values = rng.choice([0, 1, 20, 255], (6, 8)).astype(np.uint8)
            palette_png(root / "SegmentationClass" / f"{name}.png", values)
            masks[name] = values
            objects = OBJECT.format(name="person", x0=1, y0=1, x1=8, y1=6, part=PART, difficult="")
            objects += OBJECT.format(
                name="aeroplane", x0="2.5", y0=3, x1="4", y1=3, part="", difficult="<difficult>1</difficult>"
            )
            write_text(root / "Annotations" / f"{name}.xml", [ANNOTATION.format(name=name, objects=objects)])
    main, rest = root / "ImageSets" / "Main", ("train", "val")
    for folder in (main, root / "ImageSets" / "Segmentation"):
        write_text(folder / "trainval.txt", [n for part in rest for n in (folder / f"{part}.txt").read_text().split()])
    return masks


def voc(root, split="train", **options):
    return build_dataset({"name": "voc", "root": str(root), **options}, split)


def names(data):
    return [data.path(i).stem for i in range(len(data))]


def fails(needle, *args, **options):
    with pytest.raises(UserError) as caught:
        voc(*args, **options)
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def devkit(tmp_path):
    tree(tmp_path / "VOCdevkit")
    return tmp_path / "VOCdevkit"


def test_the_root_may_be_any_of_three(devkit):
    roots = (devkit.parent, devkit, devkit / "VOC2012")
    assert len({tuple(str(voc(root).path(i)) for i in range(3)) for root in roots}) == 1


def test_splits_by_task(devkit):
    for task, sizes in (("segmentation", (3, 2)), ("detection", (5, 3))):
        train, val, test = (voc(devkit, split, task=task) for split in ("train", "val", "test"))
        assert (len(train), len(val)) == sizes
        assert names(val) == names(test)  # the labels of 2012's test images are not public
        assert not set(names(train)) & set(names(val))
        assert train.classes is None
        assert train.image(0).shape == (6, 8, 3)


def test_the_test_images_of_2007(tmp_path):
    tree(tmp_path, "2007")
    assert all("test" in name for name in names(voc(tmp_path, "test", year="2007", task="detection")))
    data = {split: voc(tmp_path, split, year=2007, train_list="trainval") for split in ("train", "val", "test")}
    assert len(data["train"]) == 5
    assert names(data["val"]) == names(data["test"]) == ["2007_test0", "2007_test1", "2007_test2"]
    for folder in ("Main", "Segmentation"):
        (tmp_path / "VOC2007" / "ImageSets" / folder / "test.txt").unlink()
    assert names(voc(tmp_path, "test", year="2007")) == names(voc(tmp_path, "val", year="2007"))
    fails("no list", tmp_path, "val", year="2007", train_list="trainval")


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_both_years_to_train_on(tmp_path, place):
    for year in ("2007", "2012"):
        tree(tmp_path / "VOCdevkit", year)
    options = {"year": "2007", "task": "detection", "train_list": "trainval07+12"}
    train, val, test = (voc(tmp_path / place, split, **options) for split in ("train", "val", "test"))
    assert sorted(names(train)) == sorted(f"{y}_{p}{i}" for y in ("2007", "2012") for p in ("train", "val")
                                          for i in range(PARTS[p]))  # fmt: skip
    assert names(val) == names(test) == [f"2007_test{i}" for i in range(4)]
    assert all(train.image(i).shape == (6, 8, 3) and len(train.objects(i).labels) == 2 for i in range(len(train)))
    path = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "2012_val0.xml"
    path.write_text(path.read_text().replace("aeroplane", "tvmonitor"))
    assert train.objects(names(train).index("2012_val0")).labels.tolist() == [14, 19]
    (tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").unlink()
    fails("no list", tmp_path / place, **options)


def test_masks(tmp_path):
    masks = tree(tmp_path)
    data = voc(tmp_path)
    assert len(data.mask_classes) == 21
    assert (data.mask_classes[0], data.mask_classes[1], data.mask_classes[20]) == (
        "background",
        "aeroplane",
        "tvmonitor",
    )
    for i, name in enumerate(names(data)):
        assert np.array_equal(data.mask(i), masks[name])
    assert data.object_classes is None
    with pytest.raises(NotImplementedError):
        data.objects(0)


def test_masks_that_do_not_fit(devkit):
    data = voc(devkit)
    path = devkit / "VOC2012" / "SegmentationClass" / f"{names(data)[0]}.png"

    def line():
        with pytest.raises(UserError) as caught:
            data.mask(0)
        assert str(path) in str(caught.value)
        assert str(data.path(0)) in str(caught.value)
        return str(caught.value)

    palette_png(path, np.full((6, 8), 21, np.uint8))
    assert "value 21" in line()
    palette_png(path, np.zeros((8, 6), np.uint8))
    assert "8x6" in line()
    path.unlink()
    assert "no mask" in line()


def test_objects(devkit):
    data = voc(devkit, task="detection")
    assert data.mask_classes is None
    assert [data.object_classes[k] for k in (0, 14)] == ["aeroplane", "person"]
    boxes, labels, ignore = data.objects(0)
    # Pixels 1 to 8 and 1 to 6, both ends included, are the whole image of 8 x 6; parts are no objects.
    assert boxes.tolist() == [[0, 0, 8, 6], [1.5, 2, 4, 3]]
    assert (boxes.dtype, labels.dtype, ignore.dtype) == (np.float32, np.int64, bool)
    assert labels.tolist() == [14, 0]
    assert ignore.tolist() == [False, True]
    write_text(devkit / "VOC2012" / "Annotations" / f"{names(data)[0]}.xml", ["<annotation></annotation>"])
    boxes, labels, ignore = data.objects(0)
    assert (boxes.shape, labels.shape, ignore.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>",
        "",
        "<annotation><object><name>person</name></object></annotation>",
        ANNOTATION.format(
            name="x", objects=OBJECT.format(name="dragon", x0=1, y0=1, x1=2, y1=2, part="", difficult="")
        ),
        ANNOTATION.format(name="x", objects=OBJECT.format(name="cat", x0=5, y0=1, x1=2, y1=2, part="", difficult="")),
        ANNOTATION.format(name="x", objects=OBJECT.format(name="cat", x0="a", y0=1, x1=2, y1=2, part="", difficult="")),
        None,
    ],
)
def test_annotations_that_are_not_right(devkit, text):
    data = voc(devkit, task="detection")
    path = devkit / "VOC2012" / "Annotations" / f"{names(data)[0]}.xml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        data.objects(0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("style", ["names", "paths"])
def test_trainaug(devkit, style):
    root = devkit / "VOC2012"
    fails("trainaug.txt", devkit, aug=True)
    train = ["2012_train0", "2012_train3", "2012_train4"]
    lines = train if style == "names" else [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in train]
    write_text(root / "ImageSets" / "Segmentation" / "trainaug.txt", lines)
    fails("SegmentationClassAug", devkit, aug=True)
    for name in train:
        (root / "SegmentationClassAug").mkdir(exist_ok=True)
        PIL.Image.fromarray(np.full((6, 8), 7, np.uint8)).save(root / "SegmentationClassAug" / f"{name}.png")
    data = voc(devkit, aug=True)
    assert names(data) == train
    assert (data.mask(1) == 7).all()
    assert names(voc(devkit, "val", aug=True)) == ["2012_val0", "2012_val1"]
    assert np.array_equal(voc(devkit, "val", aug=True).mask(0), voc(devkit, "val").mask(0))
    write_text(root / "ImageSets" / "Segmentation" / "trainaug.txt", [*lines, "2012_val1"])
    fails("share 1 images (2012_val1)", devkit, aug=True)


def test_what_is_missing(devkit, tmp_path):
    fails("no PASCAL VOC 2012", tmp_path / "nowhere")
    fails("no PASCAL VOC 2007", devkit, year="2007")
    fails("another year", devkit / "VOC2012", year="2007")
    (devkit / "VOC2012" / "JPEGImages" / "2012_val0.jpg").unlink()
    fails("2012_val0.jpg", devkit, "val")
    write_text(devkit / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", [])
    fails("lists no images", devkit)
    (devkit / "VOC2012" / "Annotations").rename(devkit / "VOC2012" / "gone")
    fails("Annotations", devkit, task="detection")


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"year": "2010"}, "unknown year '2010'"),
        ({"task": "detect"}, "did you mean 'detection'"),
        ({"train_list": "all"}, "unknown train_list"),
        ({"train_list": "trainval"}, "year=2007"),
        ({"train_list": "trainval07+12"}, "year=2007"),
        ({"train_list": "trainval07+12", "year": "2007"}, "task=detection"),
        ({"aug": True, "task": "detection"}, "aug is for"),
        ({"mean": [0.5], "std": [0.5]}, "channels"),
    ],
)
def test_bad_options(devkit, options, needle):
    fails(needle, devkit, **options)


@pytest.mark.parametrize(("year", "parts"), [("2012", ["trainval"]), ("2007", ["trainval", "test"])])
def test_download_goes_through_torchvision_and_only_when_asked(tmp_path, monkeypatch, year, parts):
    import torchvision.datasets

    calls = []

    def stand_in(root, year, image_set, download):
        calls.append(image_set)
        assert download
        if image_set == "trainval":
            tree(type(tmp_path)(root) / "VOCdevkit", year)

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", stand_in)
    fails("data.download=true", tmp_path / "here", year=year)
    assert calls == []
    assert len(voc(tmp_path / "here", year=year, download=True)) == 3
    assert calls == parts
    assert len(voc(tmp_path / "here", year=year)) == 3
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))  # where it goes without data.root
    assert len(build_dataset({"name": "voc", "year": year, "download": True}, "train")) == 3
    assert (tmp_path / "cache" / "datasets" / "VOCdevkit" / f"VOC{year}" / "JPEGImages").is_dir()
