"""Each kind of data set of one's own and each dense one, from its options to a batch of views."""

import dataclasses
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from omegaconf import OmegaConf

import ssl_toolkit.configs
from ssl_toolkit.data import DATASETS, build_dataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.views import ViewDataset, ViewGroup, ViewsConfig
from tests.data import trees
from tests.data.sets import test_ade20k, test_cityscapes, test_coco, test_voc

CONFIGS = Path(ssl_toolkit.configs.__file__).parent / "data"
NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3)).astype(np.uint8)


def voc(root):
    test_voc.tree(root)
    return {"root": str(root)}


def ade20k(root):
    test_ade20k.tree(root)
    return {"root": str(root)}


def cityscapes(root):
    test_cityscapes.tree(root)
    return {"root": str(root)}


def coco(root):
    return {"root": str(test_coco.tree(root))}


def arrays(root):
    np.save(root / "images.npy", NOISE)
    np.save(root / "labels.npy", np.arange(12) % 2)
    return {"images": str(root / "images.npy"), "labels": str(root / "labels.npy")}


def webdataset(root):
    with tarfile.open(root / "a.tar", "w") as tar:
        for i, pixels in enumerate(NOISE):
            stream = io.BytesIO()
            PIL.Image.fromarray(pixels).save(stream, "JPEG")
            entry = tarfile.TarInfo(f"{i}.jpg")
            entry.size = stream.tell()
            stream.seek(0)
            tar.addfile(entry, stream)
    return {"shards": str(root)}


def huggingface(root):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [PIL.Image.fromarray(pixels) for pixels in NOISE], "label": [i % 2 for i in range(12)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(root / "saved"))
    return {"path": str(root / "saved")}


MADE = {make.__name__: make for make in (voc, ade20k, cityscapes, coco, arrays, webdataset, huggingface)}


@pytest.mark.parametrize("name", MADE)
def test_from_options_to_views(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    options = {"name": name, **MADE[name](tmp_path / "data")}
    data = {split: build_dataset(options, split) for split in ("train", "val", "test")}
    assert {(d.name, d.split, d.in_channels) for d in data.values()} == {(name, s, 3) for s in data}
    assert len({data["train"].fingerprint(), data["val"].fingerprint()}) == 2
    views = ViewDataset(data["train"], ViewsConfig(groups=[ViewGroup(count=2, size=16)]), seed=0)
    batch = views.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert [tuple(view.image.shape) for view in batch.views] == [(3, 3, 16, 16)] * 2
    assert batch.views[0].image.dtype == torch.uint8
    assert (batch.label is None) == (data["train"].classes is None)
    height, width = data["train"].image(1).shape[:2]
    assert batch.image_size[1].tolist() == [height, width]


@pytest.mark.parametrize("name", MADE)
def test_yaml_lists_every_option_with_its_default_and_a_comment(name):
    path = CONFIGS / f"{name}.yaml"
    written = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert written.pop("name") == name
    assert written == dataclasses.asdict(DATASETS.entry(name).schema())
    for line in path.read_text().splitlines():
        assert line.startswith(("#", "name:")) or "  # " in line, line


TRAIN_AND_VAL = {
    "ade20k": ("images/training", "images/validation"),
    "cityscapes": ("leftImg8bit/train", "leftImg8bit/val"),
    "coco": ("train2017", "val2017"),
    "imagenet": ("train", "val"),
    "imagenette": ("train", "val"),
}


@pytest.mark.parametrize("name", TRAIN_AND_VAL)
def test_one_folder_is_not_both_train_and_val(name, tmp_path):
    options = {"root": str(tmp_path)}
    if name.startswith("image"):
        getattr(trees, name)(tmp_path)
    else:
        options = globals()[name](tmp_path)
    train, val = TRAIN_AND_VAL[name]
    (train,) = tmp_path.rglob(train)
    val = next(path for path in tmp_path.rglob(val))
    shutil.rmtree(val)
    val.symlink_to(train, target_is_directory=True)
    for split in ("train", "val"):
        with pytest.raises(UserError, match="hold the same images"):
            build_dataset({"name": name, **options}, split)
