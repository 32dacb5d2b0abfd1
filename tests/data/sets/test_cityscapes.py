import json

import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError

# id: train id, written from the list of labels that the publisher gives; the rest of 0 to 33 is void
EVALUATED = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19)))


def tree(root):
    """Returns the label ids by image name."""
    rng, made = np.random.default_rng(0), {}
    for part, cities in (("train", ("aachen", "bochum")), ("val", ("lindau",)), ("test", ("berlin",))):
        for city in cities:
            for i in range(3):
                stem = f"{city}_{i:06d}_000019"
                values = rng.integers(0, 34, (6, 8)).astype(np.uint8)
                values[0, 0] = 255  # a license plate: -1
                for folder, name, pixels in (
                    ("leftImg8bit", f"{stem}_leftImg8bit", rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)),
                    ("gtFine", f"{stem}_gtFine_labelIds", values),
                    ("gtFine", f"{stem}_gtFine_color", rng.integers(0, 256, (6, 8, 4)).astype(np.uint8)),
                    ("gtFine", f"{stem}_gtFine_instanceIds", values.astype(np.uint16) * 100),
                ):
                    path = root / folder / part / city / f"{name}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    PIL.Image.fromarray(pixels).save(path)
                made[f"{stem}_leftImg8bit"] = values
                (root / "gtFine" / part / city / f"{stem}_gtFine_polygons.json").write_text(json.dumps({}))
    return made


def cityscapes(root, split="train"):
    return build_dataset({"name": "cityscapes", "root": str(root)}, split)


def fails(needle, action):
    with pytest.raises(UserError) as caught:
        action()
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_splits_and_masks(tmp_path):
    made = tree(tmp_path)
    train, val, test = (cityscapes(tmp_path, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (6, 3, 3)
    assert [val.relative(i) for i in range(3)] == [test.relative(i) for i in range(3)]
    assert train.mask_classes[:3] == ("road", "sidewalk", "building")
    assert train.mask_classes[-2:] == ("motorcycle", "bicycle")
    assert len(train.mask_classes) == 19
    for data in (train, val):
        for i in range(len(data)):
            mask, values = data.mask(i), made[data.path(i).stem]
            assert mask.dtype == np.uint8
            wanted = [[EVALUATED.get(int(v), 255) for v in row] for row in values]
            assert mask.tolist() == wanted


def test_torchvision_finds_the_same_files(tmp_path):
    from torchvision.datasets import Cityscapes

    tree(tmp_path)
    theirs = Cityscapes(str(tmp_path), split="train", target_type="semantic")
    ours = cityscapes(tmp_path)
    assert sorted(theirs.images) == [str(ours.path(i)) for i in range(len(ours))]


def test_images_alone_are_enough_to_pretrain(tmp_path):
    tree(tmp_path / "cityscapes")
    (tmp_path / "cityscapes" / "gtFine").rename(tmp_path / "gone")
    data = cityscapes(tmp_path)
    assert len(data) == 6
    assert data.mask_classes is None
    with pytest.raises(NotImplementedError):
        data.mask(0)


def test_what_is_wrong(tmp_path):
    tree(tmp_path)
    data = cityscapes(tmp_path)
    path = tmp_path / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png"
    PIL.Image.fromarray(np.full((6, 8), 34, np.uint8)).save(path)
    line = fails("value 34", lambda: data.mask(0))
    assert str(path) in line
    assert str(data.path(0)) in line
    PIL.Image.fromarray(np.zeros((8, 6), np.uint8)).save(path)
    fails("8x6", lambda: data.mask(0))
    path.unlink()
    fails("no mask", lambda: data.mask(0))
    fails("no Cityscapes", lambda: cityscapes(tmp_path / "nowhere"))
    (tmp_path / "leftImg8bit" / "val").rename(tmp_path / "val")
    fails("no images", lambda: cityscapes(tmp_path, "val"))
