"""``ssl-toolkit zoo list``, ``show`` and ``download``, as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ssl_toolkit.cli import main
from ssl_toolkit.zoo import zoo
from tests.test_cli import error_of
from tests.zoo.helpers import Behaviour, own_zoo, serving, zoo_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_list_has_every_entry_with_its_numbers_and_licence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    said = capsys.readouterr().out
    for entry in zoo().values():
        assert entry.name in said
        assert f"{entry.method}, {entry.arch}, {entry.params:g}M" in said
    lines = said.splitlines()
    first = next(i for i, line in enumerate(lines) if "vicregl_resnet50_alpha0p75" in line)
    assert lines[first].split() == ["vicregl_resnet50_alpha0p75", "0.75", "70.4", "55.9", "CC-BY-NC"]
    assert lines[first + 1].split() == ["VICRegL,", "resnet50,", "23M", "to", "fetch"]
    assert max(map(len, said.splitlines())) <= 80


def test_list_as_json_says_what_is_here(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "cache" / "zoo" / "vicreg_resnet50" / "resnet50.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert main(["zoo", "list", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in every] == list(zoo())
    assert main(["zoo", "list", "vicreg_*,dino_resnet50", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert len(found) == 8
    files = found["vicreg_resnet50"]["files"]
    assert files["backbone"]["path"] == str(path)
    assert (files["backbone"]["cached"], files["full"]["cached"]) == (True, False)
    assert found["vicreg_resnet50"]["numbers"] == {"authors": {"imagenet_linear": 73.2}}
    assert found["vicreg_resnet50"]["problem"] == ""
    assert "has no public file" in found["vicreg_resnet50_300ep"]["problem"]
    assert main(["zoo", "list", "vicreg_resnet50"]) == 0
    assert " here " in capsys.readouterr().out


def test_show_tells_each_number_with_its_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "show", "vicregl/resnet50-a0.75"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "vicregl_resnet50_alpha0p75 method VICRegL, alpha 0.75",
        "architecture resnet50, 23M parameters",
        "licence CC-BY-NC",
        "resnet50_alpha0.75_fullckpt.pth, not here",
        "Table 1 VOC linear mIoU 55.9",
        "Table 9 VOC linear AP 45.6",
        "loads yes",
    ):
        assert words in said
    assert main(["zoo", "show", "byol_resnet50_1000ep", "moco_v2_resnet50_200ep", "--json"]) == 0
    byol, moco = json.loads(capsys.readouterr().out)
    assert byol["files"]["full"]["verified"] is False
    assert moco["files"]["full"]["hash"] == "md5:59fd9945"
    assert main(["zoo", "show", "byol_resnet50_1000ep"]) == 0
    assert "(not in the authors' page)" in capsys.readouterr().out


def test_download_fetches_the_part_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = Behaviour(b"weights" * 1000)
    with serving(behaviour) as url:
        model = zoo_model(f"{url}/b.pth")
        model["files"]["full"] = {"url": f"{url}/f.pth"}
        own_zoo(home, monkeypatch, {"mine": model}, license="CC-BY-NC")
        assert main(["zoo", "download", "mine", "file=full"]) == 0
        assert main(["zoo", "download", "mine"]) == 0
    said = capsys.readouterr().out
    assert "mine: licence CC-BY-NC, https://example.org" in said
    folder = home / "cache" / "zoo" / "mine"
    assert f"file     {folder / 'f.pth'}" in said.replace("\n", " ") or str(folder / "f.pth") in said
    assert {path.name for path in folder.glob("*.pth")} == {"b.pth", "f.pth"}
    assert len(behaviour.asked) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name what to do first"),
        (["lst"], "unknown action 'lst': did you mean 'list'"),
        (["list", "vicregl"], "unknown zoo checkpoint 'vicregl'"),
        (["list", "data=x"], "takes names alone"),
        (["show"], "say which: ssl-toolkit zoo show NAME"),
        (["show", "vicregl_resnet50"], "did you mean"),
        (["download"], "say which: ssl-toolkit zoo download NAME"),
        (["download", "mae_vit_base", "file=full"], "has no file 'full': there is backbone"),
        (["download", "mae_vit_base", "file=head"], "file=backbone or file=full, not file=head"),
        (["download", "mae_vit_base", "part=full"], "not part=full"),
        (["download", "cp2_resnet50_820ep"], "has no public file"),
        (["download", "mae_vit_base", "--json"], "--json is for list and show"),
        (["evaluate"], "say on what: data="),
        (["evaluate", "mae_vitt_base", "data=digit_scenes"], "unknown zoo checkpoint or protocol 'mae_vitt_base'"),
        (["evaluate", "liner", "data=digit_scenes"], "did you mean 'linear'"),
        (["evaluate", "cp2_resnet50_820ep", "knn", "data=digit_scenes"], "cannot be evaluated: .*no public file"),
        (["evaluate", "knn", "data=digit_scenes", "run=x"], "run= is not for zoo evaluate"),
        (["evaluate", "knn", "data=digit_scenes", "liner.epochs=1"], "unknown key 'liner.epochs'"),
        (["evaluate", "knn", "data=imagenet", "data.root=/data/imagenet"], "/data/imagenet"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(message, error_of(capsys, "zoo", *argv))
