"""Features of images in a file: right, in order, whole after a stop, and told what was left out."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ssl_toolkit.backbones import create_backbone, save_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.data.decode import read_image
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.embed_commands import EmbedConfig
from ssl_toolkit.embedding import find_all
from ssl_toolkit.embedding.files import read_metadata
from ssl_toolkit.errors import UserError
from tests.helpers import heed_interrupts
from tests.zoo.exporters.helpers import fresh

STORED = {"mean": [0.4] * 3, "std": [0.2] * 3, "eval_resize": 40, "eval_size": 32}
QUICK = ["workers=0", "precision=fp32", "device=cpu"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eleven images of many shapes in two folders, and a backbone."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for i in range(11):
        path = folder / ("a" if i % 2 else "b") / f"{i:02d}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (40 + 3 * i, 60, 3), dtype=np.uint8)).save(path)
    save_backbone(tmp_path / "net.safetensors", fresh("tiny_resnet"), STORED)
    return folder


def embed(*argv: str) -> int:
    return main(["embed", *argv, "checkpoint=net.safetensors", *QUICK])


@torch.no_grad()
def oracle(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Features one image at a time."""
    prepared, backbone = Preprocess.of(STORED), fresh("tiny_resnet")
    found = [backbone(prepared(read_image(folder / name))[None]) for name in names]
    return np.concatenate([f.pooled for f in found]), np.concatenate([f.maps for f in found])


def test_features_are_those_of_each_image(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed("photos", "local=true", "part=4", "batch_size=3") == 0
    found = np.load("features.npz", allow_pickle=False)
    names = sorted(str(p.relative_to(photos)) for p in photos.glob("*/*"))
    assert list(found["file"]) == names
    pooled, maps = oracle(photos, names)
    np.testing.assert_allclose(found["features"], pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["maps"], maps, rtol=1e-4, atol=1e-4)
    assert found["features"].dtype == np.float32
    about = read_metadata(Path("features.npz"))
    assert about["preprocessing"] == STORED
    assert about["shapes"] == {"features": [128], "maps": [128, 4, 4]}
    assert about["backbone"]["name"] == "tiny_resnet"
    assert about["precision"] == "float32"
    assert about["unreadable"] == []
    assert not Path("features.npz.parts").exists()
    assert "11 images: features 128, maps 128 x 4 x 4" in capsys.readouterr().out


def test_parquet_holds_the_same(photos: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert embed("photos", "local=true", "part=4") == 0
    assert embed("photos", "--out", "features.parquet", "local=true", "part=4") == 0
    plain, table = np.load("features.npz"), parquet.read_table("features.parquet")
    assert table.column_names == ["file", "features", "maps"]
    assert table["file"].to_pylist() == list(plain["file"])
    assert np.array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), plain["features"])
    maps = np.array(table["maps"].to_pylist(), dtype=np.float32).reshape(plain["maps"].shape)
    assert np.array_equal(maps, plain["maps"])
    assert read_metadata(Path("features.parquet")) == read_metadata(Path("features.npz"))


def test_half_precision_bf16_workers_and_sizes(photos: Path) -> None:
    assert embed("photos") == 0
    full = np.load("features.npz")["features"]
    assert embed("photos", "out=half.npz", "dtype=float16") == 0
    half = np.load("half.npz")["features"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, rtol=1e-3, atol=1e-3)
    assert main(["embed", "photos", "checkpoint=net.safetensors", "out=bf.npz", "precision=bf16", "workers=2"]) == 0
    reduced = np.load("bf.npz")["features"]
    assert read_metadata(Path("bf.npz"))["precision"] == "bfloat16"
    assert not np.array_equal(reduced, full)
    np.testing.assert_allclose(reduced, full, rtol=0.1, atol=0.05 * np.abs(full).max())
    assert embed("photos", "out=large.npz", "size=64", "resize=64") == 0
    large = read_metadata(Path("large.npz"))["preprocessing"]
    assert (large["eval_resize"], large["eval_size"]) == (64, 64)
    assert not np.array_equal(np.load("large.npz")["features"], full)


def test_folders_patterns_lists_and_single_files(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "notes.txt").write_text("no image")
    assert find_all("photos").files[0] == "a/01.png"
    assert find_all("photos/*/*.jpg").files == [f"photos/{n}" for n in ("a/03.jpg", "a/09.jpg", "b/00.jpg", "b/06.jpg")]
    assert find_all("photos/**/*.png").root == Path()
    (photos / "list.txt").write_text("a/03.jpg\n\n# comment\nb/00.jpg\n")
    assert find_all("photos/list.txt").files == ["a/03.jpg", "b/00.jpg"]
    assert find_all("photos/list.txt").path(1) == Path("photos/b/00.jpg")
    assert find_all("photos/a/03.jpg").files == ["03.jpg"]
    for nothing, why in (("nowhere", "does not exist"), ("photos/*.gif", "no images in")):
        with pytest.raises(UserError, match=why):
            find_all(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in empty"):
        find_all("empty")


def test_unreadable_images_are_named_or_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed("photos") == 0
    whole = np.load("features.npz")
    (photos / "a" / "00-bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (photos / "a" / "05-bad.png").write_bytes(b"")
    assert embed("photos", "batch_size=2", "part=2") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "left out: cannot decode photos/a/00-bad.jpg" in told
    assert "2 unreadable left out" in told
    found = np.load("features.npz")
    assert list(found["file"]) == list(whole["file"])
    np.testing.assert_allclose(found["features"], whole["features"], rtol=1e-4, atol=1e-5)
    left = read_metadata(Path("features.npz"))["unreadable"]
    assert [each["file"] for each in left] == ["a/00-bad.jpg", "a/05-bad.png"]
    assert "is empty" in left[1]["reason"]
    assert embed("photos", "unreadable=refuse", "out=other.npz") == 2
    assert "unreadable=skip leaves such images out" in capsys.readouterr().err
    assert not Path("other.npz").exists()
    Path("bad.txt").write_text("photos/a/00-bad.jpg\nphotos/missing.jpg\n")
    assert embed("bad.txt", "out=none.npz") == 2
    assert "none of 2 images can be read" in capsys.readouterr().err
    assert not Path("none.npz").exists()


def test_a_stopped_one_goes_on_to_the_same_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embed("photos", "local=true", "part=2", "batch_size=2", "out=whole.npz") == 0
    from ssl_toolkit.embedding import parts

    write, done = parts.Parts.write, []

    def stopping(self: parts.Parts, number: int, part: parts.Part) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        write(self, number, part)
        done.append(number)

    monkeypatch.setattr(parts.Parts, "write", stopping)
    argv = ["photos", "local=true", "part=2", "batch_size=2", "out=stopped.npz"]
    assert embed(*argv) == 130
    assert not Path("stopped.npz").exists()
    assert sorted(p.name for p in Path("stopped.npz.parts").glob("*.npz")) == [f"{n:08d}.npz" for n in range(3)]
    again = []
    monkeypatch.setattr(
        parts.Parts, "write", lambda self, number, part: (again.append(number), write(self, number, part))
    )
    assert embed(*argv) == 0
    assert again == [3, 4, 5]
    one, two = np.load("whole.npz"), np.load("stopped.npz")
    assert all(np.array_equal(one[name], two[name]) for name in one.files)


def test_parts_of_another_embedding_are_not_taken(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["ssl_toolkit.embedding.embed"], "_join", stopping)
    assert embed("photos", "part=2") == 130
    monkeypatch.undo()
    monkeypatch.chdir(photos.parent)
    assert embed("photos", "part=2", "local=true") == 2
    assert "parts of another embedding (local differ)" in capsys.readouterr().err
    PIL.Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(photos / "new.png")
    assert embed("photos", "part=2") == 2
    assert "(images, count differ): remove it" in capsys.readouterr().err
    (photos / "new.png").unlink()
    damaged = Path("features.npz.parts/00000001.npz")
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert embed("photos", "part=2") == 2
    assert "00000001.npz is damaged" in capsys.readouterr().err
    damaged.unlink()
    assert embed("photos", "part=2") == 0
    assert len(np.load("features.npz")["file"]) == 11


@pytest.mark.command
def test_ctrl_c_says_how_to_go_on(photos: Path) -> None:
    argv = [sys.executable, "-m", "ssl_toolkit.cli", "embed", "photos", "checkpoint=net.safetensors", *QUICK]
    argv += ["part=1", "batch_size=1"]
    slow = "import time, ssl_toolkit.data.decode as d; r = d.decode_image\n"
    slow += "def late(*a):\n    time.sleep(0.5)\n    return r(*a)\nd.decode_image = late\n"
    slow += "from ssl_toolkit.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    started = subprocess.Popen(
        [sys.executable, "-c", slow, *argv[3:]],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(Path().glob("features.npz.parts/0000*.npz")) and time.monotonic() < deadline:
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 130
    assert "stopped; the same command goes on from features.npz.parts" in err
    assert embed("photos", "part=1", "batch_size=1") == 0
    assert len(np.load("features.npz")["file"]) == 11


def test_features_that_are_not_finite_are_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = fresh("tiny_resnet")
    with torch.no_grad():
        backbone.blocks[-1].bn2.bias.fill_(1e6)  # type: ignore[union-attr, index]
    save_backbone(Path("net.safetensors"), backbone, STORED)
    assert embed("photos", "dtype=float16") == 2
    assert "dtype=float16 does not reach them" in capsys.readouterr().err
    with torch.no_grad():
        backbone.blocks[-1].bn2.bias.fill_(float("nan"))  # type: ignore[union-attr, index]
    save_backbone(Path("net.safetensors"), backbone, STORED)
    assert embed("photos", "out=other.npz") == 2
    assert "a/01.png gives features that are not finite: the weights are damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["run=x"], "name the images first"),
        (["photos", "out=x.csv"], "name a .npz or .parquet file"),
        (["photos", "out=photos"], "name a .npz or .parquet file"),
        (["photos", "dtype=int8"], "dtype must be float32 or float16"),
        (["photos", "unreadable=ignore"], "unreadable must be skip or refuse"),
        (["photos", "part=0"], "part must be 1 or more"),
        (["photos", "workers=-1"], "workers must be 0 or more"),
        (["photos", "lokal=true"], "unknown key 'lokal'"),
        (["nowhere"], "does not exist: give a folder"),
        (["photos"], "say which backbone"),
        (["photos", "checkpoint=net.safetensors", "size=64", "resize=32"], "size=64 must be between 1 and resize=32"),
    ],
)
def test_bad_input_is_refused(photos: Path, capsys: pytest.CaptureFixture[str], argv: list[str], why: str) -> None:
    assert main(["embed", *argv]) == 2
    assert why in capsys.readouterr().err
    assert not list(photos.parent.glob("features*"))


def test_parquet_without_its_package(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_toolkit.embedding.files.importlib.util.find_spec", lambda name: None)
    assert embed("photos", "out=x.parquet") == 2
    assert "pip install 'ssl-toolkit[parquet]'" in capsys.readouterr().err


def test_two_do_not_write_one_file(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ssl_toolkit.evaluation.store import Lock

    lock = Lock(Path(".features.npz.lock"))
    assert lock.taken()
    assert embed("photos") == 2
    assert "another embed writes features.npz" in capsys.readouterr().err
    lock.release()


def test_the_yaml_has_every_key_and_its_default() -> None:
    given = {str(key): value for key, value in compose_config("embed").items() if key != "backbone"}
    assert given == dataclasses.asdict(EmbedConfig())


def test_gray_backbones_take_gray(photos: Path) -> None:
    gray = create_backbone({"name": "tiny_resnet", "in_channels": 1}).eval()
    save_backbone(Path("net.safetensors"), gray, {"mean": [0.4], "std": [0.2], "eval_resize": 32, "eval_size": 32})
    assert embed("photos") == 0
    assert np.load("features.npz")["features"].shape == (11, 128)
    assert json.loads(str(np.load("features.npz")["metadata"]))["backbone"]["in_channels"] == 1
