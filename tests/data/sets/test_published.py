"""What the published data sets share: missing files, downloading on request only, configs, and views of each."""

import dataclasses
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import ssl_toolkit.configs
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.data import DATASETS, build_dataset
from ssl_toolkit.data.sets.published import part_of_train, read_rows, spread, whole_numbers
from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed
from ssl_toolkit.views import ViewDataset, ViewsConfig
from tests.data import trees

FETCHED = ("cifar10", "cifar100", "stl10", "imagenette", "flowers102", "oxford_pets")
BY_HAND = ("cub200", "imagenet")
SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96}


def make(name: str, root: Path, monkeypatch) -> list[str]:
    """A tiny tree of ``name`` below ``root``; returns the overrides that read it."""
    if name.startswith("cifar"):
        trees.cifar(root, monkeypatch, name.upper())
    else:
        getattr(trees, name)(root)
    if name == "file_list":
        return [override_of("data.file", root / "train.txt")]
    return [override_of("data.root", root)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("name", [*FETCHED, *BY_HAND, "file_list"])
def test_views_by_the_recipe_of_the_same_name(name, tmp_path, monkeypatch):
    config = compose_config("pretrain", [f"data={name}", *make(name, tmp_path, monkeypatch)])
    views = typed(ViewsConfig, config.views, "views")
    for split in ("train", "val", "test"):
        data = build_dataset(config.data, split)
        assert (data.name, data.split) == (name, split)
        assert len(data) >= 1
        assert data.image(0).dtype == np.uint8
        assert data.image(0).shape[2] == data.in_channels == len(data.config.mean) == 3
        assert data.labels().min() >= 0
        assert data.labels().max() < len(data.classes)
        assert data.fingerprint() == build_dataset(config.data, split).fingerprint()
    train = build_dataset(config.data, "train")
    batch = ViewDataset(train, views, seed=0).__getitems__([(0, 0), (0, len(train) - 1)])
    assert not isinstance(batch, UserError)
    assert [view.image.shape[-1] for view in batch.views] == [SIZES.get(name, 224)] * 2
    assert batch.label.tolist() == [train.label(0), train.label(len(train) - 1)]


@pytest.mark.parametrize("name", [*FETCHED, *BY_HAND, "file_list"])
def test_yaml_lists_every_option_with_its_default_and_a_comment(name):
    path = Path(ssl_toolkit.configs.__file__).parent / "data" / f"{name}.yaml"
    written = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert written.pop("name") == name
    assert written == dataclasses.asdict(DATASETS.entry(name).schema())
    for line in path.read_text().splitlines():
        assert line.startswith(("#", "name:")) or "  # " in line, line


@pytest.mark.parametrize("name", FETCHED)
def test_without_files_nothing_is_fetched_unasked(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    for options, folder in (({"root": str(tmp_path / "data")}, "data"), ({}, "cache/datasets")):
        with pytest.raises(UserError, match=r"data\.download=true") as caught:
            build_dataset({"name": name, **options}, "train")
        line = str(caught.value)
        assert str(tmp_path / folder) in line
        assert "data.root=PATH" in line
        assert "\n" not in line
    assert not list(tmp_path.iterdir())


MODULES = {
    "cifar10": ("cifar", "cifar-10-batches-py"),
    "cifar100": ("cifar", "cifar-100-python"),
    "stl10": ("stl10", "stl10_binary"),
    "imagenette": ("imagenette", "imagenette2-320"),
    "flowers102": ("flowers102", "flowers-102"),
    "oxford_pets": ("oxford_iiit_pet", "oxford-iiit-pet"),
}


def serve(monkeypatch, name: str, source: Path):
    """Let torchvision "download" the tree in ``source``: archives are links, unpacking is moving."""
    module, inner = MODULES[name]
    where = f"torchvision.datasets.{module}"
    calls = []

    def download_and_extract_archive(url, download_root, *args, **kwargs):
        calls.append(url)
        place = Path(download_root)
        place.mkdir(parents=True, exist_ok=True)
        (place / Path(url).name).write_bytes(b"archive")
        if (source / inner).exists():
            for path in (source / inner).iterdir():
                target = (place if place.name == inner else place / inner) / path.name
                target.parent.mkdir(exist_ok=True)
                path.rename(target)

    monkeypatch.setattr(f"{where}.download_and_extract_archive", download_and_extract_archive)
    if name == "flowers102":
        monkeypatch.setattr(f"{where}.download_url", lambda *args, **kwargs: None)
        monkeypatch.setattr(f"{where}.check_integrity", lambda path, md5: Path(path).is_file())
    if name == "stl10":
        monkeypatch.setattr(f"{where}.check_integrity", lambda path, md5: Path(path).is_file())
    return calls


@pytest.mark.parametrize("name", FETCHED)
def test_download_on_request(name, tmp_path, monkeypatch, capsys):
    source, root = tmp_path / "source", tmp_path / "root"
    make(name, source, monkeypatch)
    calls = serve(monkeypatch, name, source)
    config = {"name": name, "root": str(root)}
    data = build_dataset({**config, "download": True}, "test")
    assert len(calls) >= 1
    assert "downloading" in capsys.readouterr().out
    inner = MODULES[name][1]
    assert [path.name for path in root.iterdir()] == [inner]
    assert not [path for path in (root / inner).iterdir() if path.name.endswith("gz")]
    assert build_dataset(config, "test").fingerprint() == data.fingerprint()
    count = len(calls)
    build_dataset({**config, "download": True}, "train")
    assert len(calls) == count


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route to host"),
        RuntimeError("File not found or corrupted.\nmore"),
        tarfile.ReadError("unexpected end of data"),
    ],
)
def test_a_download_that_fails_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(url, download_root, *args, **kwargs):
        (Path(download_root) / "imagenette2-320" / "train").mkdir(parents=True)
        raise error

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", fail)
    with pytest.raises(UserError, match="cannot download Imagenette") as caught:
        build_dataset({"name": "imagenette", "root": str(tmp_path), "download": True}, "train")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_folder_is_not_written_over(tmp_path, monkeypatch):
    (tmp_path / "imagenette2-320" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is incomplete.*remove it first"):
        build_dataset({"name": "imagenette", "root": str(tmp_path), "download": True}, "train")


def test_two_processes_may_download_at_once(tmp_path, monkeypatch):
    def slow(url, download_root, *args, **kwargs):
        trees.imagenette(Path(download_root))
        trees.imagenette(tmp_path)  # the other one is done first

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", slow)
    data = build_dataset({"name": "imagenette", "root": str(tmp_path), "download": True}, "test")
    assert len(data) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["imagenette2-320"]


def test_holding_out(tmp_path):
    names = [str(i) for i in range(2000)]
    parts = {split: part_of_train(names, 0.1, split, tmp_path) for split in ("train", "val")}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(2000))
    assert 150 < len(parts["val"]) < 250
    with pytest.raises(UserError, match="leaves none for train"):
        part_of_train(["one"], 0.5, "train", tmp_path)


def test_spread_looks_at_both_ends():
    assert spread(1) == [0]
    assert spread(3) == [0, 1, 2]
    many = spread(1_000_000)
    assert (many[0], many[-1]) == (0, 999_999)
    assert len(many) == 8


def test_rows_and_numbers(tmp_path):
    path = trees.write_text(tmp_path / "rows.txt", ["# names", "a 1", "", " b  2 "])
    assert read_rows(path, 2) == [["a", "1"], ["b", "2"]]
    assert whole_numbers(["1", "2"], path, 1, 2).tolist() == [1, 2]
    for value in ("0", "3", "-1", "1.0", "x", "", "²"):
        with pytest.raises(UserError, match=r"rows\.txt"):
            whole_numbers([value], path, 1, 2)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_rows(path, 2)
