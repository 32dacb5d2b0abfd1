"""Tiny trees of published data sets, written in their real file formats."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import torchvision.datasets


def put_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """A JPEG of one gray value, ``size`` as (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((*size, 3), value % 256, dtype=np.uint8)).save(path, "JPEG", quality=95)
    return path


def write_text(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def cifar(root: Path, monkeypatch, kind: str = "CIFAR10", per_batch: int = 12):
    """The python batches, with torchvision's MD5s patched to those of the files; returns planes and labels by file."""
    theirs = getattr(torchvision.datasets, kind)
    folder = root / theirs.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    fine = kind == "CIFAR100"
    count = 100 if fine else 10
    written, sums = {}, {}
    for name, _ in [*theirs.train_list, *theirs.test_list]:
        planes = rng.integers(0, 256, (per_batch, 3072)).astype(np.uint8)
        labels = rng.integers(0, count, per_batch).tolist()
        entry = {"data": planes, "fine_labels" if fine else "labels": labels, "filenames": ["x.png"] * per_batch}
        if fine:
            entry["coarse_labels"] = [label // 5 for label in labels]
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
        written[name] = planes, labels
    meta = {theirs.meta["key"]: [f"kind {i}" for i in range(count)]}
    (folder / theirs.meta["filename"]).write_bytes(pickle.dumps(meta, protocol=2))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(theirs, attribute, [[name, sums[name]] for name, _ in getattr(theirs, attribute)])
    monkeypatch.setattr(theirs, "meta", {**theirs.meta, "md5": sums[theirs.meta["filename"]]})
    return written


def stl10(root: Path, train: int = 40, test: int = 10, unlabeled: int = 15):
    """The binary files; returns images ``(n, 96, 96, 3)`` and labels from 1 by part."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", train), ("test", test), ("unlabeled", unlabeled)):
        images = rng.integers(0, 256, (count, 96, 96, 3)).astype(np.uint8)
        raw = bytearray()
        for image in images:  # the format's own words: red, then green, then blue, each column by column
            for channel in range(3):
                for column in range(96):
                    raw += image[:, column, channel].tobytes()
        (folder / f"{part}_X.bin").write_bytes(bytes(raw))
        labels = rng.integers(1, 11, count).astype(np.uint8)
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes(labels.tobytes())
        made[part] = images, labels
    return made


WNIDS = ("n01440764", "n02102040", "n03888257")


def class_tree(folder: Path, per_class: int, prefix: str = "", wnids=WNIDS) -> Path:
    """``n01440764/n01440764_0.JPEG`` and so on; each image has a value of its own."""
    for number, wnid in enumerate(wnids):
        for i in range(per_class):
            put_image(folder / wnid / f"{prefix}{wnid}_{i}.JPEG", 40 * number + i)
    return folder


def imagenet(root: Path, per_class: int = 8) -> Path:
    class_tree(root / "train", per_class)
    class_tree(root / "val", 3, "val_")
    return root


def imagenette(root: Path, inner: str = "imagenette2-320", per_class: int = 20) -> Path:
    imagenet(root / inner, per_class)
    return root


def flowers102(root: Path, train: int = 6, val: int = 5, test: int = 9, inner: str = "flowers-102"):
    """The two .mat files and the images; returns label (from 1) by image number, and numbers by part."""
    from scipy.io import savemat

    folder = root / inner
    rng = np.random.default_rng(0)
    count = train + val + test
    labels = rng.integers(1, 103, count)
    labels[:2] = 1, 102
    order = rng.permutation(count) + 1
    ids = {"trnid": order[:train], "valid": order[train : train + val], "tstid": order[train + val :]}
    for number in range(1, count + 1):
        put_image(folder / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    savemat(folder / "setid.mat", {name: values[None].astype(np.uint16) for name, values in ids.items()})
    return {number: int(label) for number, label in enumerate(labels, 1)}, ids


BREEDS = ("Abyssinian", "american_bulldog", "Birman")


def oxford_pets(root: Path, per_breed: int = 12, test: int = 3, inner: str = "oxford-iiit-pet"):
    """Images, lists and trimaps; returns the breed of each name, and the trimap of each name."""
    folder, rng = root / inner, np.random.default_rng(0)
    breeds, trimaps = {}, {}
    for part, count, start in (("trainval", per_breed, 1), ("test", test, 100)):
        lines = []
        for number, breed in enumerate(BREEDS, 1):
            for i in range(start, start + count):
                name = f"{breed}_{i}"
                lines.append(f"{name} {number} {2 if breed[0].islower() else 1} 1")
                put_image(folder / "images" / f"{name}.jpg", number * 50 + i, size=(6, 8))
                trimap = rng.integers(1, 4, (6, 8)).astype(np.uint8)
                path = folder / "annotations" / "trimaps" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(trimap).save(path)
                breeds[name], trimaps[name] = breed, trimap
        write_text(folder / "annotations" / f"{part}.txt", lines)
    return breeds, trimaps


SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def cub200(root: Path, per_class: int = 16, inner: str = "CUB_200_2011"):
    """The five text files and the images; returns (class number, in training, left, top, width, height) by name."""
    folder, rng = root / inner, np.random.default_rng(0)
    truth, rows = {}, []
    for number, species in enumerate(SPECIES, 1):
        for i in range(per_class):
            name = f"{species}/{species[4:]}_{i:04d}_{rng.integers(9999)}.jpg"
            left, top, width, height = (float(v) for v in rng.integers(1, 5, 4))
            truth[name] = number, i % 4 != 0, left, top, width, height
            rows.append(name)
            put_image(folder / "images" / name, 50 * number + i, size=(12, 10))
    ids = rng.permutation(len(rows)) + 1  # files need not be in the order of ids
    pairs = sorted(zip(ids.tolist(), rows))
    write_text(folder / "classes.txt", [f"{i} {name}" for i, name in enumerate(SPECIES, 1)])
    write_text(folder / "images.txt", [f"{i} {name}" for i, name in pairs])
    write_text(folder / "image_class_labels.txt", [f"{i} {truth[name][0]}" for i, name in reversed(pairs)])
    write_text(folder / "train_test_split.txt", [f"{i} {int(truth[name][1])}" for i, name in pairs])
    write_text(folder / "bounding_boxes.txt", [" ".join(map(str, (i, *truth[name][2:]))) for i, name in pairs])
    return truth


def file_list(root: Path, count: int = 30) -> Path:
    """``train.txt`` with names and a TAB and a class each, the images beside it."""
    lines = []
    for i in range(count):
        put_image(root / f"pictures/a {i}.jpg", i)
        lines.append(f"pictures/a {i}.jpg\t{'cat' if i % 2 else 'dog'}")
    return write_text(root / "train.txt", lines)
