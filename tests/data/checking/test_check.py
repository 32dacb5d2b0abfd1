"""``data check`` on trees with every fault, its numbers against brute force, and workers that die."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.checking import decoding
from ssl_toolkit.data.checking.check import CheckConfig, Report, check
from ssl_toolkit.data.checking.lists import Names, find
from ssl_toolkit.data.checking.report import measured, notes, print_report
from ssl_toolkit.errors import UserError

QUIET = Console(file=io.StringIO(), width=100)


def save(path: Path, height: int = 40, width: int = 50, channels: int = 3, seed: int = 0, **options: Any) -> None:
    """Smooth noise, so that JPEG decoders agree; ``seed`` makes it another image."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    small = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    big = small.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(big[..., 0] if channels == 1 else big).save(path, **options)


def run(path: Path, workers: int = 0, **options: Any) -> Report:
    return check(path, CheckConfig(workers=workers, **options), QUIET)


def listed(name: str | None) -> list[list[str]]:
    assert name is not None
    lines = Path(name).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    assert lines[0].startswith("# ssl-toolkit")
    return [line.split("\t") for line in lines[1:]]


def printed(report: Report, shown: int = 10) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console, shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def damaged(home: Path) -> Path:
    """Two classes in three splits with one of every fault."""
    root = home / "pets"
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(count):
                save(root / split / name / f"{i}.jpg", 40 + i, 50 + 2 * i, seed=10 * count + c)
    train = root / "train"
    whole = (train / "cat/5.jpg").read_bytes()
    (train / "cat/5.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (train / "cat/empty.jpg").write_bytes(b"")
    (train / "dog/text.png").write_text("these are no pixels")
    shutil.copy(train / "cat/1.jpg", train / "cat/again.jpg")
    shutil.copy(train / "cat/2.jpg", train / "dog/mislabelled.jpg")
    shutil.copy(train / "dog/3.jpg", root / "test/dog/leak.jpg")
    save(train / "dog/gray.png", channels=1)
    save(train / "dog/alpha.png", 20, 30, channels=4)
    deep = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    PIL.Image.fromarray(deep).save(train / "cat/deep.png")
    return root


def test_every_fault_is_found_and_counted(damaged: Path) -> None:
    report = run(damaged)
    reasons = report.unreadable
    assert set(reasons) == {"train/cat/5.jpg", "train/cat/empty.jpg", "train/dog/text.png"}
    assert reasons["train/cat/empty.jpg"] == "is empty"
    assert "not an image" in reasons["train/dog/text.png"]
    assert not report.fine
    assert [(s.name, s.images, s.unreadable, s.repeated) for s in report.splits] == [
        ("train", 19, 3, 2), ("val", 6, 0, 0), ("test", 5, 0, 0),
    ]  # fmt: skip
    groups = {tuple(g.files): (g.across_splits, g.across_classes) for g in report.duplicates}
    assert groups == {
        ("train/cat/1.jpg", "train/cat/again.jpg"): (False, False),
        ("train/cat/2.jpg", "train/dog/mislabelled.jpg"): (False, True),
        ("train/dog/3.jpg", "test/dog/leak.jpg"): (True, False),
    }
    assert report.channels == {"3": 24, "1": 2, "4": 1}
    assert report.bits == {"8": 26, "16": 1}


def test_numbers_are_those_of_brute_force(damaged: Path) -> None:
    report = run(damaged)
    widths, heights, hashes, formats = [], [], defaultdict(list), defaultdict(int)
    kept = dict(listed(report.splits[0].clean_list))
    means, squares = [], []
    for path in sorted(damaged.rglob("*.*")):
        name = path.relative_to(damaged).as_posix()
        if name in report.unreadable:
            continue
        with PIL.Image.open(path) as opened:
            formats[str(opened.format).lower()] += 1
            values = np.asarray(opened)
        widths.append(values.shape[1])
        heights.append(values.shape[0])
        hashes[hashlib.sha256(path.read_bytes()).hexdigest()].append(name)
        if str(path) in kept:
            pixels = (values >> 8 if values.dtype == np.uint16 else values).astype(np.float64)
            pixels = pixels[..., None].repeat(3, 2) if pixels.ndim == 2 else pixels[..., :3]
            means.append((pixels / 255).mean(axis=(0, 1)))
            squares.append(((pixels / 255) ** 2).mean(axis=(0, 1)))
    assert report.width is not None
    assert report.height is not None
    assert (report.width.min, report.width.median, report.width.max) == (min(widths), np.median(widths), max(widths))
    assert (report.height.min, report.height.median, report.height.max) == (
        min(heights), np.median(heights), max(heights),
    )  # fmt: skip
    assert report.below_32 == sum(min(w, h) < 32 for w, h in zip(widths, heights)) == 1
    assert report.formats == dict(formats)
    repeated = {tuple(sorted(names)) for names in hashes.values() if len(names) > 1}
    assert {tuple(sorted(g.files)) for g in report.duplicates} == repeated
    sizes = {s: sum(p.stat().st_size for p in (damaged / s).rglob("*.*")) for s in ("train", "val", "test")}
    assert {s.name: s.bytes for s in report.splits} == sizes
    assert report.measured_on == "train"
    mean = np.mean(means, axis=0)
    assert report.mean == pytest.approx(mean, abs=5e-4)  # JPEG decoders differ by a level here and there
    assert report.std == pytest.approx(np.sqrt(np.mean(squares, axis=0) - mean**2), abs=5e-4)


def test_clean_lists_train_and_check_without_fault(damaged: Path) -> None:
    report = run(damaged)
    assert [s.clean_list for s in report.splits] == [f"pets-clean-{s}.txt" for s in ("train", "val", "test")]
    rows = listed("pets-clean-train.txt")
    names = [Path(path).relative_to(damaged).as_posix() for path, _ in rows]
    assert len(names) == report.splits[0].kept == 14
    assert not set(names) & {*report.unreadable, "train/cat/again.jpg", "train/dog/mislabelled.jpg"}
    assert {"train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.jpg"} <= set(names)
    assert all(name.split("/")[1] == label for name, (_, label) in zip(names, rows))
    classes = report.splits[0].classes
    assert classes == {"cat": sum(r[1] == "cat" for r in rows), "dog": sum(r[1] == "dog" for r in rows)}
    lists = {key: f"pets-clean-{split}.txt" for key, split in
             (("file", "train"), ("val_file", "val"), ("test_file", "test"))}  # fmt: skip
    for split in report.splits:
        data = build_dataset({"name": "file_list", **lists}, split.name)
        assert len(data) == split.kept
        assert data.classes == ("cat", "dog")
        assert data.image(0).shape[2] == 3
    again = run(Path("pets-clean-train.txt"))
    assert again.fine
    assert again.duplicates == []
    assert [s.clean_list for s in again.splits] == ["pets-clean-train-clean.txt"]
    assert listed("pets-clean-train-clean.txt") == rows
    assert again.mean == report.mean


def test_what_is_dropped_is_a_choice(damaged: Path) -> None:
    everything = run(damaged, drop_duplicates=False)
    assert everything.splits[0].kept == 16
    guarded = run(damaged, drop_across=True)
    assert [s.kept for s in guarded.splits] == [13, 6, 5]
    assert str(damaged / "train/dog/3.jpg") not in dict(listed("pets-clean-train.txt"))
    assert str(damaged / "test/dog/leak.jpg") in dict(listed("pets-clean-test.txt"))
    assert not guarded.fine  # the folder still is what it is
    assert run(damaged, duplicates=False).duplicates == []


def test_drop_across_is_about_splits_alone(home: Path) -> None:
    for i in range(3):
        save(home / "flat" / f"{i}.png", seed=i)
    shutil.copy(home / "flat/0.png", home / "flat/3.png")
    assert run(home / "flat", drop_across=True).splits[0].kept == 3
    assert run(home / "flat", drop_across=True, drop_duplicates=False).splits[0].kept == 4
    with pytest.raises(ValueError, match="drop_across needs duplicates=true"):
        CheckConfig(drop_across=True, duplicates=False)


def test_groups_of_duplicates_are_in_the_order_of_their_files(home: Path) -> None:
    for i in range(12):
        save(home / "flat" / f"{i:02d}.png", seed=i)
        shutil.copy(home / "flat" / f"{i:02d}.png", home / "flat" / f"{i:02d}b.png")
    found = [group.files for group in run(home / "flat").duplicates]
    assert found == [[f"{i:02d}.png", f"{i:02d}b.png"] for i in range(12)]


def test_duplicates_that_were_not_looked_for_are_no_zero(damaged: Path) -> None:
    report = run(damaged, duplicates=False)
    assert [split.repeated for split in report.splits] == [None] * 3
    assert json.loads(Path("pets-clean.json").read_text())["splits"][0]["repeated"] is None
    printed(report)


@pytest.mark.parametrize(
    ("folders", "written"),
    [
        (("8710398", "8710399", "8710400"), {"8710398": "0", "8710399": "1", "8710400": "2"}),
        (("-1", "1"), {"-1": "0", "1": "1"}),
        (("001", "002", "010"), None),
        (("1", "2", "3"), None),
        (("1", "2", "x"), None),
    ],
)
def test_class_folders_named_by_numbers(folders: tuple[str, ...], written: dict[str, str] | None, home: Path) -> None:
    """The clean list has as many classes as the folder, in their order, and their names where a list can hold them."""
    for seed, name in enumerate(folders):
        save(home / "set" / name / "a.png", seed=seed)
    report = run(home / "set")
    rows = {Path(path).parent.name: label for path, label in listed("set-clean.txt")}
    assert rows == (written or {name: name for name in folders})
    assert report.numbered == (written is not None)
    assert ("the lists number the classes" in "".join(notes(report))) == report.numbered
    data = build_dataset({"name": "file_list", "file": "set-clean.txt", "val_fraction": 0.0}, "train")
    assert data.classes is not None
    shift = 1 if folders == ("1", "2", "3") else 0  # there is a class 0 then, of no image
    assert data.labels().tolist() == [i + shift for i in range(len(folders))]
    if written is None:
        assert data.classes[shift:] == folders


def test_a_list_is_not_written_over_after_hours_of_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(home / "1.png")
    (home / "all-val.csv").write_text("path,split\n1.png,val\n")
    (home / "link.csv").symlink_to("all-val.csv")
    monkeypatch.setattr("ssl_toolkit.data.checking.check.examine_all", lambda *args: pytest.fail("was examined"))
    (home / "a.txt").write_text("1.png\n")
    (home / "b.txt").symlink_to("a.txt")
    (home / "c-val.txt").hardlink_to("all-val.csv")
    for path, out in (("a.txt", "a.txt"), ("a.txt", "b.txt"), ("b.txt", "a.txt"), ("link.csv", "c.txt")):
        with pytest.raises(UserError, match="is the list to be checked"):
            run(Path(path), out=out)


def test_everything_that_is_said_fits_a_narrow_terminal(damaged: Path) -> None:
    report = run(damaged)
    console = Console(file=io.StringIO(), width=60)
    print_report(report, console, 10)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "drop_across=true leaves them out of training" in text
    assert "at most one label is right" in text


def test_causes_are_whole(home: Path) -> None:
    """What remains of an error line once the name and the usual advice are gone."""
    save(home / "set" / "a.png")
    (home / "set" / "b.tif").write_bytes(b"II*\0" + b"\x08\0\0\0" + bytes(100))
    assert run(home / "set").unreadable == {"b.tif": "a TIFF of an unusual kind: convert it to PNG or .npy"}
    found = run(home / "set", in_channels=4).unreadable["a.png"]
    assert found == "has 3 channels, in_channels is 4: change one or the other"


def test_the_report_as_json_and_in_print(damaged: Path) -> None:
    report = run(damaged)
    saved = json.loads(Path("pets-clean.json").read_text())
    assert saved["unreadable"] == report.unreadable
    assert saved["mean"] == report.mean
    assert saved["duplicates"][0]["files"] == report.duplicates[0].files
    assert saved["options"]["workers"] == 0
    assert saved["splits"][0]["classes"] == report.splits[0].classes
    text = printed(report)
    for words in (
        "train/dog/text.png", "THE SAME IMAGE IN SEVERAL SPLITS: 1 group", "train/dog/3.jpg = test/dog/leak.jpg",
        "THE SAME IMAGE IN SEVERAL CLASSES: 1 group", "jpeg: 24, png: 3", "20 to 48 px, median",
        "data.bits=16", measured(report),
    ):  # fmt: skip
        assert words in text, words
    assert "and 2 more" in printed(report, shown=1)


def test_a_flat_folder_has_one_list_without_labels(home: Path) -> None:
    for i in range(5):
        save(home / "flat" / f"{i}.png", seed=i)
    report = run(home / "flat", out="lists/fine.txt")
    assert report.fine
    assert report.splits[0].name == ""
    assert report.splits[0].classes is None
    assert "data.mean=[" in measured(dataclasses.replace(report, std=[0.0] * 3))
    assert "0.0000" not in measured(dataclasses.replace(report, std=[0.0] * 3))
    assert [len(row) for row in listed("lists/fine.txt")] == [1] * 5
    assert Path("lists/fine.json").exists()
    assert "images per class" not in printed(report)


def test_rare_classes_and_names_are_noted(home: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b [x]/1.png", "c/zwei\tteile.png", "c/größe.png", "c/3.png"):
        save(home / "set" / name, channels=1, seed=len(name))
    (home / "set/c/3.png").rename(os.fsdecode(os.fsencode(home / "set/c") + b"/\xff.png"))
    report = run(home / "set")
    assert report.unlistable == ["c/zwei\tteile.png"]
    assert report.splits[0].kept == 5
    lines = "\n".join(notes(report))
    assert "fewer than 2 images: 1 (b [x])" in lines
    assert "data.in_channels=1" in lines
    assert "tabs or line breaks" in lines
    printed(report)
    data = build_dataset({"name": "file_list", "file": "set-clean.txt", "val_fraction": 0.0}, "train")
    assert [data.image(i).shape for i in range(len(data))] == [(40, 50, 3)] * 5


def test_channels_and_bits_are_decoded_as_asked(home: Path) -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    (home / "deep").mkdir()
    PIL.Image.fromarray(values).save(home / "deep" / "a.png")
    report = run(home / "deep", in_channels=1, bits=16)
    exact = values.astype(np.float64) / 65535
    assert report.mean == pytest.approx([exact.mean()], rel=1e-5)
    assert report.std == pytest.approx([exact.std()], rel=1e-5)
    assert "data.bits=16" not in "".join(notes(report))
    assert run(home / "deep", in_channels=4).unreadable["a.png"].startswith("has 1 channels")


def test_lists_are_checked_too(home: Path) -> None:
    for i in range(6):
        save(home / "images" / f"{i}.png", seed=i)
    shutil.copy(home / "images/0.png", home / "images/5.png")
    rows = [f"images/{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'val'}" for i in range(6)]
    Path("all.csv").write_text("\n".join(["path,label,split", *rows]))
    report = run(Path("all.csv"))
    assert [(s.name, s.images) for s in report.splits] == [("train", 4), ("val", 2)]
    assert report.duplicates[0].across_splits
    assert report.duplicates[0].across_classes
    assert report.splits[0].classes == {"a": 2, "b": 2}
    Path("some.txt").write_text("0.png\n1.png\nmissing.png\n")
    report = run(Path("some.txt"), root="images")
    assert report.unreadable == {"missing.png": "No such file or directory"}
    assert [row[0] for row in listed("some-clean.txt")] == [str(home / "images" / f"{i}.png") for i in range(2)]


def test_nothing_readable_writes_no_list(home: Path) -> None:
    (home / "bad").mkdir()
    (home / "bad/a.jpg").write_bytes(b"\xff\xd8\xff")
    report = run(home / "bad")
    assert not report.fine
    assert report.mean is None
    assert report.splits[0].clean_list is None
    assert not Path("bad-clean.txt").exists()
    assert "no list is written" in printed(report)
    assert measured(report) == ""


def test_bad_input(home: Path) -> None:
    save(home / "a" / "1.png")
    (home / "empty").mkdir()
    (home / "notes.md").write_text("")
    (home / "a.txt").write_text("a/1.png\n")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("none", {}, "none does not exist: give a folder"),
        ("empty", {}, "no images in"),
        ("notes.md", {}, "notes.md is no list"),
        ("a.txt", {"out": "a.txt"}, "a.txt is the list to be checked"),
        ("a", {"out": "notes.md/x.txt"}, "cannot write to"),
    ]
    for path, options, message in cases:
        with pytest.raises(UserError) as caught:
            run(Path(path), **options)
        assert message in str(caught.value)
        assert "data.root" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert Path("a.txt").read_text() == "a/1.png\n"
    for wrong in ({"bits": 9}, {"in_channels": 0}, {"workers": -1}, {"out": "a.csv"}, {"labels": "no"}):
        with pytest.raises(ValueError):
            CheckConfig(**wrong)  # type: ignore[arg-type]


def test_names_are_packed_but_the_same(home: Path) -> None:
    names = ["a.jpg", "größe/图 1.jpg", os.fsdecode(b"\xff.png"), ""]
    packed = Names(names)
    assert [packed[i] for i in range(len(packed))] == names
    assert len(packed.unlistable()) == 0
    assert Names(["a", "b\nc", "d\te"]).unlistable().tolist() == [1, 2]
    save(home / "x" / "a" / "1.png")
    save(home / "x" / "b" / "1.png")
    found = find(home / "x", "auto")
    assert [found.classes[k] for k in found.label] == ["a", "b"]


def _dying_work(connection: Any, shared: Any, job: Any) -> None:
    """A worker in which some files end the process, as a decoder with a bug does."""
    real = decoding.examine

    def examine(name: str, job: Any, record: Any) -> str | None:
        record["state"] = decoding.STARTED
        if "segfault" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "exit" in name:
            os._exit(3)
        return real(name, job, record)

    decoding.examine = examine  # type: ignore[assignment]
    decoding._work(connection, shared, job)


def _failing_work(connection: Any, shared: Any, job: Any) -> None:
    os._exit(1)


@pytest.mark.command
def test_workers_that_die_lose_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / "many"
    for i in range(70):
        save(root / f"{i:02d}.png", 16, 16, seed=i)
    save(root / "07-segfault.png", 16, 16)
    save(root / "50-exit.png", 16, 16)
    (root / "05-broken.png").write_bytes(b"no")  # its reason is lost with the worker, and found again
    monkeypatch.setattr(decoding, "_work", _dying_work)
    report = run(root, workers=2)
    assert report.unreadable == {
        "05-broken.png": "not an image of a known format",
        "07-segfault.png": "decoding it ended the process (SIGSEGV)",
        "50-exit.png": "decoding it ended the process (exit status 3)",
    }
    assert report.splits[0].kept == 70
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    monkeypatch.chdir(home)
    for name in report.unreadable:
        (root / name).unlink()
    here = run(root)
    assert (here.mean, here.std, here.width) == (report.mean, report.std, report.width)


@pytest.mark.command
def test_workers_that_cannot_start_are_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(home / "a" / "1.png")
    monkeypatch.setattr(decoding, "_work", _failing_work)
    with pytest.raises(UserError, match=r"before they do anything \(exit status 1\); workers=0"):
        run(home / "a", workers=1)
    assert not multiprocessing.active_children()
