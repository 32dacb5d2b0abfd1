"""``ssl-toolkit data`` as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from omegaconf import OmegaConf

from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.checking.check import CheckConfig
from ssl_toolkit.data_commands import PreviewConfig, suggestion
from ssl_toolkit.registry import typed
from ssl_toolkit.views import ViewBatch, ViewDataset, ViewsConfig
from ssl_toolkit.views.sheet import draw_sheet
from tests.helpers import heed_interrupts
from tests.test_cli import error_of, write_photos


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_yamls_hold_the_defaults_of_their_schemas() -> None:
    check = OmegaConf.to_container(compose_config("data_check"))
    assert check == dataclasses.asdict(CheckConfig())
    preview = OmegaConf.to_container(compose_config("data_preview"))
    assert isinstance(preview, dict)
    assert {k: v for k, v in preview.items() if k not in ("data", "views")} == dataclasses.asdict(PreviewConfig())


def test_check_of_sound_images_has_status_zero(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "my photos", classes=2, each=5)
    assert main(["data", "check", "my photos", "workers=0"]) == 0
    out = capsys.readouterr().out
    assert "10 " in out
    report = json.loads((home / "my photos-clean.json").read_text())
    assert report["splits"][0]["kept"] == 10
    (following,) = [line for line in out.splitlines() if line.startswith("next ")]
    words = shlex.split(following.removeprefix("next "))
    assert words[:3] == ["ssl-toolkit", "pretrain", "data=file_list"]
    config = compose_config("pretrain", words[2:])  # what is printed is taken as it is
    data = build_dataset(config.data, "train")
    assert data.classes == ("class0", "class1")
    assert data.config.mean == pytest.approx(report["mean"], abs=1e-4)
    assert data.config.std == pytest.approx(report["std"], abs=1e-4)


@pytest.mark.parametrize("fault", ["unreadable", "across"])
def test_check_of_faulty_images_has_status_one(fault: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_photos(home / "photos" / split, classes=2, each=2)
    for path in (home / "photos" / "val").rglob("*.png"):  # those were drawn from the same seed
        PIL.Image.fromarray(255 - np.asarray(PIL.Image.open(path))).save(path)
    assert main(["data", "check", "photos", "workers=0"]) == 0
    bad = home / "photos/val/class0/0.png"
    bad.write_bytes(b"" if fault == "unreadable" else (home / "photos/train/class0/1.png").read_bytes())
    capsys.readouterr()
    assert main(["data", "check", "photos", "workers=0"]) == 1
    out = capsys.readouterr().out
    assert "val/class0/0.png" in out
    assert ("SEVERAL SPLITS" in out) == (fault == "across")
    assert "data.val_file=photos-clean-val.txt" in out


def test_without_images_to_train_on_no_command_is_suggested(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "photos" / "val", classes=2, each=2)
    (home / "photos/train/class0").mkdir(parents=True)
    (home / "photos/train/class0/0.png").write_bytes(b"")
    assert main(["data", "check", "photos", "workers=0"]) == 1
    out = capsys.readouterr().out
    assert "list     photos-clean-val.txt" in out
    assert "\nnext" not in out


def test_options_are_quoted_for_the_shell() -> None:
    assert "'data.file=\"my photos.txt\"'" in suggestion({"": "my photos.txt"}, 3, 8, "")
    for name in ("my photos.txt", "a,b=c{d}.txt", 'say "x".txt', "back\\slash.txt", "größe 图.txt"):
        words = shlex.split(suggestion({"": name}, 3, 8, ""))
        assert compose_config("pretrain", words[2:]).data.file == name
    lists = {"train": "a-train.txt", "val": "it's [mine].txt"}
    words = shlex.split(suggestion(lists, 4, 16, "data.mean=[0.5,0.25,0.1,0.1] data.std=[1,1,1,1]"))
    config = compose_config("pretrain", words[2:])
    assert config.data.file == "a-train.txt"
    assert config.data.val_file == "it's [mine].txt"
    assert config.data.test_file is None
    assert (config.data.in_channels, config.data.bits) == (4, 16)
    assert config.data.mean == [0.5, 0.25, 0.1, 0.1]


def test_preview_shows_what_training_sees(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "photos", classes=2, each=12)
    options = ["data=folder", "data.root=photos", "views=small", "count=3", "seed=5", "epoch=2", "out=new/sheet.png"]
    assert main(["data", "preview", *options]) == 0
    out = capsys.readouterr().out
    assert "2 large views of 32 px" in out
    assert "new/sheet.png" in out
    data = build_dataset({"name": "folder", "root": "photos"}, "train")
    views = typed(ViewsConfig, compose_config("pretrain", ["views=small"]).views, "views")
    chosen = [0, (len(data) - 1) // 2, len(data) - 1]
    batch = ViewDataset(data, views, 5).__getitems__([(2, i) for i in chosen])
    assert isinstance(batch, ViewBatch)
    plain = draw_sheet([data.image(i) for i in chosen], batch)
    with PIL.Image.open(home / "new" / "sheet.png") as opened:
        sheet = np.asarray(opened)
    rows = plain.shape[0] - 120  # all but the header
    assert np.array_equal(sheet[-rows:], plain[-rows:])


def test_preview_needs_no_options(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.train_size=20", "data.val_size=10", "data.test_size=10"]
    assert main(["data", "preview", *small]) == 0
    assert "48 px" in capsys.readouterr().out  # the recipe of the data
    assert (home / "preview.png").stat().st_size > 1000
    assert main(["data", "preview", "split=test", "count=50", *small]) == 0  # there are but ten


def test_preview_names_what_it_could_not_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "photos", classes=2, each=12)
    data = build_dataset({"name": "folder", "root": "photos"}, "train")
    Path(data.path(0)).write_bytes(b"")  # type: ignore[attr-defined]
    assert main(["data", "preview", "data=folder", "data.root=photos", "views=small"]) == 0
    out = capsys.readouterr().out
    assert "skipped" in out
    assert str(data.path(0)) in out  # type: ignore[attr-defined]


def test_mistakes_get_one_line_and_status_two(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "photos", classes=2, each=2)
    (home / "empty").mkdir()
    cases = [
        ([], "name what to do first: ssl-toolkit data check PATH"),
        (["data=folder"], "name what to do first"),
        (["chek", "photos"], "unknown action 'chek': did you mean 'check'"),
        (["check"], "say what to check: ssl-toolkit data check PATH"),
        (["check", "workers=2"], "say what to check"),
        (["check", "photos", "empty"], "one folder or list at a time, not 2 (photos, empty)"),
        (["check", "nowhere"], "nowhere does not exist"),
        (["check", "empty"], "no images in empty"),
        (["check", "photos", "worker=1"], "did you mean 'workers'"),
        (["check", "photos", "workers=many"], "workers"),
        (["check", "photos", "workers=-1"], "workers and max_shown must not be negative"),
        (["check", "photos", "out=list.csv"], "out is a list and ends in .txt"),
        (["preview", "data=foldr"], "did you mean 'folder'"),
        (["preview", "photos"], "'photos' is not an option"),
        (["preview", "count=0"], "count must be at least 1"),
        (["preview", "out=sheet.jpg"], "out is a picture and ends in .png"),
        (["preview", "split=training"], "unknown split 'training'"),
        (["preview", "views.groups.0.size=4"], "size >= 8"),
        (["preview", "data=folder", "data.root=empty"], "no images in empty"),
    ]
    for argv, message in cases:
        assert message in error_of(capsys, "data", *argv), argv
    assert not list(home.glob("*.png"))
    assert not list(home.glob("*.txt"))


@pytest.mark.command
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_ctrl_c_ends_a_check_with_its_workers(home: Path) -> None:
    (home / "photos").mkdir()
    for i in range(2):  # readers of a named pipe wait for a writer: a check of these never ends
        os.mkfifo(home / "photos" / f"{i}.jpg")
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_toolkit.cli", "data", "check", "photos", "workers=1"],
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        begun = False
        while not begun and time.monotonic() < deadline and process.poll() is None:
            try:
                os.close(os.open(home / "photos" / "0.jpg", os.O_WRONLY | os.O_NONBLOCK))
                begun = True  # a worker is reading
            except OSError:
                time.sleep(0.1)
        assert begun
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err == "interrupted\n"
    assert "Traceback" not in out
    assert not list(home.glob("photos-clean*"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return  # no process of the group is left
        time.sleep(0.1)
    raise AssertionError("workers are left running")
