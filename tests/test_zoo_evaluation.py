"""``ssl-toolkit zoo evaluate``: freshly initialised weights in the official layout, on digit scenes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_toolkit import zoo_evaluation_commands
from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.zoo import published, zoo
from ssl_toolkit.zoo_table import Column, ZooTable, as_csv, as_dict, markdown
from tests.test_cli import error_of, write_photos
from tests.zoo.helpers import Behaviour, own_zoo, serving, zoo_model

SCENES = ["data=digit_scenes", "data.train_size=32", "data.val_size=16", "data.test_size=16", "data.eval_size=32"]
QUICK = [*SCENES, "precision=fp32", "device=cpu", "linear.epochs=1", "segmentation.iterations=2", "out=out"]


def model(where: Path | str, **options: Any) -> dict[str, Any]:
    """An entry of a ResNet-18, whose files have the names of the authors' ResNet-50s."""
    return zoo_model(str(where), arch="resnet18", params=11, **options)


def official(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {k.removeprefix("model."): v for k, v in create_backbone({"name": "resnet18"}).state_dict().items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, bare and whole, and one that is none."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(official(0), folder / "bare.pth")
    whole = {f"module.backbone.{name}": value for name, value in official(1).items()}
    torch.save({"epoch": 1, "model": {**whole, "module.projector.0.weight": torch.zeros(2)}}, folder / "whole.pth")
    torch.save({"weight": torch.zeros(2)}, folder / "broken.pth")
    return folder


@pytest.fixture
def home(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    numbers = {"table1": {"imagenet_linear": 71.2, "voc_linear": 54.0}}
    models = {
        "bare": model(weights / "bare.pth", numbers=numbers),
        "whole": model(weights / "whole.pth", part="full", numbers={"authors": {"imagenet_linear": 73.2}}),
        "broken": model(weights / "broken.pth"),
        "other": model(weights / "bare.pth", format="unheard_of"),
    }
    own_zoo(tmp_path, monkeypatch, models)
    return tmp_path


def created(home: Path) -> dict[str, str]:
    return {
        str(path.relative_to(home / "out")): json.loads(path.read_text())["created"]
        for path in (home / "out").glob("*/*.json")
        if path.name != "done.json"
    }


@pytest.mark.command
def test_entries_are_evaluated_once_into_a_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error_of_failures(capsys, ["zoo", "evaluate", "bare,whole,broken", *QUICK], "3 of 9 evaluations failed")
    first = created(home)
    assert set(first) == {
        f"{n}/{p}-digit_scenes.json" for n in ("bare", "whole") for p in ("knn", "linear", "segmentation")
    }

    table = (home / "out" / "zoo.md").read_text()
    titles = [f"{title}, digit_scenes" for title in ("knn top-1", "linear top-1", "segmentation mIoU")]
    titles += ["published: ImageNet linear top-1", "published: VOC linear mIoU"]
    assert f"| name | architecture | {' | '.join(titles)} |" in table
    assert "| 71.2 (Table 1) | 54.0 (Table 1) |" in table
    assert "| 73.2 (authors) |" in table
    assert "- failed: broken, knn: " in table
    assert "broken.pth (format vicregl): " in table

    rows = {row["name"]: row for row in csv.DictReader(io.StringIO((home / "out" / "zoo.csv").read_text()))}
    for name in ("bare", "whole"):
        for protocol, metric in (("knn", "top1"), ("linear", "top1"), ("segmentation", "miou")):
            result = json.loads((home / "out" / name / f"{protocol}-digit_scenes.json").read_text())
            assert result["source"] == name
            assert float(rows[name][f"{protocol}-digit_scenes"]) == pytest.approx(result["metrics"][metric], abs=1e-4)
    assert rows["broken"]["knn-digit_scenes"] == ""
    assert (rows["bare"]["imagenet_linear"], rows["bare"]["imagenet_linear_from"]) == ("71.2", "Table 1")
    plain = json.loads((home / "out" / "zoo.json").read_text())
    assert plain["command"].startswith("ssl-toolkit zoo evaluate bare,whole,broken data=digit_scenes")
    assert {(f["name"], f["protocol"]) for f in plain["failed"]} == {
        ("broken", protocol) for protocol in ("knn", "linear", "segmentation")
    }

    # finished ones are not done again, those of a command with another option are, beside the others' results
    assert main(["zoo", "evaluate", "bare,whole", *QUICK]) == 0
    assert created(home) == first
    assert capsys.readouterr().out.count("finished before") == 6
    assert main(["zoo", "evaluate", "linear", "bare", *QUICK, "linear.epochs=2"]) == 0
    again = created(home)
    assert {name for name in first if first[name] != again[name]} == {"bare/linear-digit_scenes.json"}
    assert main(["zoo", "evaluate", "knn", "bare,whole", *QUICK]) == 0
    assert created(home) == again
    note = "not comparable: linear top-1, digit_scenes was measured with different options"
    assert note in (home / "out" / "zoo.md").read_text()


def error_of_failures(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err + captured.out
    return captured.err


@pytest.mark.command
def test_a_download_that_fails_is_tried_again_and_a_new_file_evaluated_again(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = Behaviour((weights / "bare.pth").read_bytes())
    behaviour.cut = 2_000_000
    with serving(behaviour) as url:
        own_zoo(home, monkeypatch, {"far": model(f"{url}/far.pth")})
        argv = ["zoo", "evaluate", "far", "knn", *QUICK]
        error_of_failures(capsys, argv, "1 of 1 evaluations failed")
        assert "failed: far, knn: cannot download" in (home / "out" / "zoo.md").read_text()
        behaviour.cut = None
        assert main(argv) == 0
        assert behaviour.asked[-1]["Range"] == "bytes=2000000-"
        path = home / "cache" / "zoo" / "far" / "far.pth"
        first = created(home)
        for name in ("far.pth", "far.pth.sha256"):
            (path.parent / name).unlink()
        assert main(argv) == 0  # known by what it was: nothing is fetched
        assert created(home) == first
        path.write_bytes((weights / "whole.pth").read_bytes())
        assert main(argv) == 0
        assert created(home) != first


@pytest.mark.command
def test_whatever_else_goes_wrong_is_logged_and_the_others_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = zoo_evaluation_commands.evaluate_one

    def fails(protocol: str, overrides: list[str], console: object) -> int:
        if "zoo='bare'" in overrides:
            raise RuntimeError("out of memory\nand more")
        return true(protocol, overrides, console)  # type: ignore[arg-type]

    monkeypatch.setattr(zoo_evaluation_commands, "evaluate_one", fails)
    error_of_failures(capsys, ["zoo", "evaluate", "bare,whole", "knn", *QUICK], "1 of 2 evaluations failed")
    assert list(created(home)) == ["whole/knn-digit_scenes.json"]
    assert (
        "failed: bare, knn: RuntimeError: out of memory (out/bare/knn-error.log)" in (home / "out/zoo.md").read_text()
    )
    assert "and more" in (home / "out" / "bare" / "knn-error.log").read_text()


@pytest.mark.command
def test_a_command_that_is_stopped_goes_on_where_it_was(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = zoo_evaluation_commands.evaluate_one

    def stops(protocol: str, overrides: list[str], console: object) -> int:
        if "zoo='whole'" in overrides:
            raise KeyboardInterrupt
        return true(protocol, overrides, console)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(zoo_evaluation_commands, "evaluate_one", stops)
        assert main(["zoo", "evaluate", "bare,whole", "knn", *QUICK]) == 130
    first = created(home)
    assert list(first) == ["bare/knn-digit_scenes.json"]
    assert main(["zoo", "evaluate", "bare,whole", "knn", *QUICK]) == 0
    assert created(home).items() > first.items()


@pytest.mark.command
def test_protocols_follow_what_the_data_has(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "photos", classes=2, each=8)
    folder = [
        "data=folder",
        "data.root=photos",
        "data.eval_size=32",
        "data.eval_resize=32",
        "precision=fp32",
        "out=out",
    ]
    assert "segmentation needs masks" in error_of(capsys, "zoo", "evaluate", "bare", "segmentation", *folder)
    plan = zoo_evaluation_commands._plan(["bare", *folder])
    assert plan.protocols == ["linear_augmented"]  # the paper's, of which the other needs masks
    assert zoo_evaluation_commands._plan(["bare", *QUICK]).protocols == ["knn", "linear", "segmentation"]


def test_patterns_leave_out_what_cannot_be_loaded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = zoo_evaluation_commands._plan(["*", "knn", *QUICK])
    assert plan.left_out["other"] == "there is no importer of unheard_of files"
    assert "bare" not in plan.left_out
    assert {entry.name for entry in plan.entries} == set(zoo())
    assert "other cannot be evaluated" in error_of(capsys, "zoo", "evaluate", "bare,other", "knn", *QUICK)


def test_torchrun_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost",
                       "MASTER_PORT": 29500}.items():  # fmt: skip
        monkeypatch.setenv(key, str(value))
    assert "not by torchrun" in error_of(capsys, "zoo", "evaluate", "bare", "knn", *QUICK)


def table(*columns: Column) -> ZooTable:
    entries = [published("vicregl_resnet50_alpha0p75"), published("vicreg_resnet50"), published("cp2_resnet50_820ep")]
    values = {entries[0].name: {column: 10.0 + i for i, column in enumerate(columns)}}
    return ZooTable(entries, values, {(entries[1].name, columns[0].protocol): "no room"}, {entries[2].name: "no file"})


def test_numbers_of_the_same_protocol_and_data_stand_beside() -> None:
    """The paper's own benchmarks: Tables 1, 8 and 9."""
    full = table(
        Column("linear_augmented", "", "imagenet", "top1"),
        Column("segmentation_augmented", "", "voc", "miou"),
        Column("segmentation_augmented", "fcn", "voc", "miou"),
        Column("segmentation_augmented", "finetuned", "voc", "miou"),
        Column("detection", "", "voc", "ap"),
        Column("detection_finetune", "c4", "voc", "ap"),
    )
    header, rows = full.cells()
    assert header[8:] == [
        "published: ImageNet linear top-1",
        "published: VOC linear mIoU",
        "published: VOC FCN mIoU",
        "published: VOC linear mIoU, fine-tuned",
        "published: VOC linear AP",
        "published: VOC fine-tuned AP",
    ]
    assert rows[0][2:] == [
        *("10.0", "11.0", "12.0", "13.0", "14.0", "15.0"),
        *("70.4 (Table 1)", "55.9 (Table 1)", "65.3 (Table 8)", "67.6 (Table 1)", "45.6 (Table 9)", "59.5 (Table 9)"),
    ]
    assert rows[1][2:] == ["failed", "", "", "", "", "", "73.2 (authors)", "", "", "", "", ""]
    assert rows[2][8] == "53.1 (Table 1)"
    said = markdown(full)
    assert "- failed: vicreg_resnet50, linear_augmented: no room" in said
    assert "- left out: cp2_resnet50_820ep: no file" in said
    assert as_dict(full)["rows"][0]["published"]["table9"] == {"voc_detection_finetuned": 59.5, "voc_detection": 45.6}
    row = next(csv.DictReader(io.StringIO(as_csv(full))))
    assert (row["voc_fcn"], row["voc_fcn_from"], row["licence"]) == ("65.3", "Table 8", "CC-BY-NC")


def test_other_data_stands_beside_the_usual_benchmark() -> None:
    mixed = table(Column("knn", "", "digit_scenes", "top1"), Column("segmentation_augmented", "", "cityscapes", "miou"))
    assert mixed.measures == ["cityscapes_linear", "imagenet_linear"]
    assert table(Column("spectrum", "", "digit_scenes", "rankme")).measures == []
