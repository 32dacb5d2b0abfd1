"""The dali engine on every kind of source: folders, file lists, tar files, numpy and HDF5 arrays, worker processes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ssl_toolkit.data import ImageDataset, build_dataset
from ssl_toolkit.views import ViewGroup, view_loader
from tests.views.helpers import PLAIN, Photos, views

pytest.importorskip("nvidia.dali")
CONFIG = views(ViewGroup(size=32, **PLAIN), ViewGroup(count=2, size=16, large=False, **PLAIN))


def folder(root: Path) -> dict[str, Any]:
    for index, raw in enumerate(Photos(12).files):
        path = root / f"class{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw.tobytes())
    cv2.imwrite(str(root / "class0" / "png.png"), Photos(1).image(0)[..., ::-1])
    return {"name": "folder", "root": str(root), "val_fraction": 0.0}


def file_list(root: Path) -> dict[str, Any]:
    folder(root)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    (root / "train.txt").write_text("".join(f"{name}\tlabel{i % 3}\n" for i, name in enumerate(names)))
    return {"name": "file_list", "file": str(root / "train.txt"), "val_fraction": 0.0}


def webdataset(root: Path) -> dict[str, Any]:
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for index, raw in enumerate(Photos(12).files):
                for suffix, content in (("jpg", raw.tobytes()), ("cls", str(index % 4).encode())):
                    info = tarfile.TarInfo(f"{shard}{index:03d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return {"name": "webdataset", "shards": str(root / "*.tar"), "val_fraction": 0.0}


def pixels() -> np.ndarray:
    photos = Photos(12)
    return np.stack([cv2.resize(photos.image(i), (50, 40)) for i in range(12)])


def numpy_array(root: Path) -> dict[str, Any]:
    np.save(root / "images.npy", pixels())
    return {"name": "arrays", "images": str(root / "images.npy"), "val_fraction": 0.0}


def hdf5(root: Path) -> dict[str, Any]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "images.h5", "w") as file:
        file["train"] = pixels()
    return {"name": "arrays", "images": f"{root / 'images.h5'}:train", "val_fraction": 0.0}


SOURCES: list[tuple[Callable[[Path], dict[str, Any]], bool]] = [
    (folder, True),
    (file_list, True),
    (webdataset, True),
    (numpy_array, False),
    (hdf5, False),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("source", "files"), SOURCES)
def test_both_engines_read_the_same(
    source: Callable[[Path], dict[str, Any]], files: bool, workers: int, tmp_path: Path
) -> None:
    dataset: ImageDataset = build_dataset(source(tmp_path), "train")
    assert (dataset.encoded(0) is not None) == files
    batches = []
    for engine in ("dali", "torch"):
        loader = view_loader(engine, dataset, CONFIG, seed=3, batch_size=4, workers=workers, device=torch.device("cpu"))
        batches.append(list(loader))
        loader.close()
    assert len(batches[0]) == len(batches[1]) == len(dataset) // 4
    for ours, theirs in zip(*batches):
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.image_size, theirs.image_size)
        assert (ours.label is None) == (dataset.classes is None)
        if ours.label is not None and theirs.label is not None:
            assert torch.equal(ours.label, theirs.label)
        for a, b in zip(ours.views, theirs.views):
            assert torch.equal(a.box, b.box)
            gap = (a.image.int() - b.image.int()).abs()[:, :, 3:-3, 3:-3]
            assert gap.float().mean() < 1
            assert gap.max() <= 12
