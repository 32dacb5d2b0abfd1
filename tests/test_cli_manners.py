"""What the command line says of itself, what it says of mistakes, and what it gives to programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssl_toolkit import cli
from ssl_toolkit.cli import main
from ssl_toolkit.cli_actions import ACTIONS
from ssl_toolkit.cli_parser import JSON, build_parser, subparsers_of
from ssl_toolkit.cli_texts import COMMANDS, DATA_ACTIONS, EXITS, PICTURES, PROTOCOLS, SHELLS, SUITES, TASKS, ZOO_ACTIONS
from ssl_toolkit.json_output import json_only, plain
from tests.test_cli import error_of

HEAVY = ("torch", "hydra", "omegaconf", "matplotlib", "numpy", "lightning")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def imported_by(*argv: str) -> set[str]:
    """What of `HEAVY` a command imports."""
    code = (
        "import sys\nfrom ssl_toolkit.cli import main\n"
        f"try:\n    main({list(argv)!r})\nexcept SystemExit:\n    pass\n"
        f"print('imported', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--help"],
        ["--version"],
        ["pretrain", "--help"],
        ["completion", "bash"],
        ["__complete", "bash", "ssl-toolkit pretrain method="],
        ["__complete", "bash", "ssl-toolkit zoo show vic"],
        ["pretrian"],
    ],
)
def test_what_a_person_waits_for_imports_nothing_heavy(argv: list[str]) -> None:
    assert imported_by(*argv) == set()


def test_keys_are_completed_and_runs_listed_without_torch(home: Path) -> None:
    assert "torch" not in imported_by("__complete", "bash", "ssl-toolkit pretrain trainer.")
    assert "torch" not in imported_by("runs", "nowhere")


def test_alone_it_shows_every_command_by_task_and_every_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"\n{task}:\n") for task in TASKS]
    assert places == sorted(places)
    assert TASKS == ("train", "evaluate", "compare", "data", "models", "machine")
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", said, flags=re.MULTILINE), name
    for status in EXITS:
        assert re.search(rf"^  {status} ", said, flags=re.MULTILINE)
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == said


def test_statuses_are_those_that_main_returns() -> None:
    own = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    assert own | {0} == set(EXITS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_help_has_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(ACTIONS) == list(COMMANDS)
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    for example in COMMANDS[name].examples:
        assert example in said
        words = re.sub(r" {2,}\(.*", "", example).split(" > ")[0]
        if not words.startswith("source"):
            assert words.split()[:1] == ["ssl-toolkit"]
            args = build_parser().parse_args([word.strip("'") for word in words.split()[1:]])
            assert args.command in COMMANDS


def test_words_written_out_are_those_that_there_are() -> None:
    from ssl_toolkit import data_commands, evaluation, picture_commands, zoo_commands
    from ssl_toolkit.bench.run import SUITES as BENCHED
    from ssl_toolkit.completion import SCRIPTS

    assert sorted(PROTOCOLS) == evaluation.PROTOCOLS.names()
    assert sorted(SUITES) == BENCHED.names()
    assert tuple(picture_commands.KINDS) == PICTURES
    assert data_commands.ACTIONS == DATA_ACTIONS
    assert zoo_commands.ACTIONS == ZOO_ACTIONS
    assert tuple(SCRIPTS) == SHELLS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrian", "unknown command 'pretrian': did you mean 'pretrain'"),
        ("xxxx", "unknown command 'xxxx': there are demo, init, pretrain"),
        ("experiment=digits", "name the command first: ssl-toolkit pretrain experiment=digits"),
        ("--nope", "unknown option --nope"),
        ("eval", "required: protocols; for example: ssl-toolkit eval knn,linear,segmentation run=runs/NAME"),
        ("eval knn --devices 2", "unknown option --devices: keys are written without dashes, devices="),
        ("eval knn --jsn", "did you mean --json?"),
        ("pretrain --multi", "did you mean --multirun?"),
        ("pretrain epochs=3", "did you mean 'trainer.epochs'"),
        ("pretrain data.root=photos", "data.root': data=folder, data=ade20k"),
        ("pretrain method.temperature=1", "method=simclr, method=simclr_l have it; choose one of them before it"),
        ("pretrain method.local.gama=1", "did you mean 'method.local.gamma'"),
        ("pretrain words", "write key=value"),
        ("pretrain run=file.txt", "file.txt has no config.yaml: not a run folder"),
        ("runs nowhere", "no folder nowhere"),
        ("runs a b", "too many arguments: b; for example: ssl-toolkit runs"),
        ("compare", "required: RUN; for example: ssl-toolkit compare runs/A runs/B"),
        ("compare a --html", "argument --html: expected one argument"),
        ("report file.txt", "no run folder at file.txt"),
        ("export", "say what to export"),
        ("export zoo=nowhere", "unknown zoo checkpoint 'nowhere'"),
        ("embed nowhere run=x", "nowhere does not exist"),
        ("picture", "required: kind"),
        ("picture foo run=x", "unknown picture 'foo'"),
        ("data", "name what to do first"),
        ("data chek x", "did you mean 'check'"),
        ("data check . nope=3", "unknown key 'nope': valid: bits, drop_across"),
        ("data preview data=folder --json", "--json is for check"),
        ("zoo lst", "did you mean 'list'"),
        ("zoo download --json", "--json is for list and show"),
        ("bench", "required: suite"),
        ("bench foo", "unknown bench suite 'foo'"),
        ("reproduce table99", "unknown study 'table99'"),
        ("replay", "required: FILE"),
        ("replay file.txt", "cannot be read as a failed step of a run (failures/step-*.pt)"),
        ("demo words", "write key=value"),
        ("init words", "must end in .yaml or .yml"),
        ("doctor --fix", "unknown option --fix: valid: -h, --help, --debug, --json"),
        ("completion", "required: shell"),
        ("completion tcsh", "unknown shell 'tcsh': did you mean"),
        ("eval knn backbone=resnet18 data=digit_scenes knn.ks=x", "knn.ks: it takes a list"),
    ],
)
def test_mistakes_say_what_to_do_in_one_line(
    line: str, message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "file.txt").write_text("nothing")
    assert message in error_of(capsys, *line.split())
    assert [path.name for path in home.iterdir()] == ["file.txt"]


def test_debug_shows_the_traceback_wherever_it_stands(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_memory_that_is_full_says_what_to_lower(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def full(*_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has")

    monkeypatch.setitem(ACTIONS, "runs", full)
    assert main(["runs"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the GPU's memory is full (CUDA out of memory)")
    assert "trainer.accumulate" in said
    assert len(said.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error(home: Path) -> None:
    code = "import sys; from ssl_toolkit.cli import main; sys.exit(main([]))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()  # before anything is written
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(timeout=120) in (0, 1, 120)


def test_json_is_all_that_standard_output_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with json_only() as emit:
        print("progress")
        emit({"nan": float("nan"), "path": Path("a"), "tuple": (1, 2), "é": True})
        print("more")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"nan": None, "path": "a", "tuple": [1, 2], "é": True}
    assert captured.err.split() == ["progress", "more"]


def test_plain_values_of_numpy_and_others() -> None:
    import numpy as np

    assert plain({1: np.array([1.0, np.inf]), "n": np.int64(3), "o": complex(1)}) == {
        "1": [1.0, None],
        "n": 3,
        "o": "(1+0j)",
    }


def test_the_commands_with_json_are_those_that_say_so() -> None:
    parsers = subparsers_of(build_parser())
    have = {name for name, sub in parsers.items() if any("--json" in a.option_strings for a in sub._actions)}
    assert have == set(JSON)


def a_run(folder: Path, top1: float) -> None:
    (folder / "results").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "method: {name: vicreg}\nbackbone: {name: resnet18}\ndata: {name: scenes}\nseed: 0\n"
    )
    result = {
        "protocol": "knn", "data": "scenes", "source": folder.name, "metric": "top1", "metrics": {"top1": top1},
        "selected": {"k": 20}, "grid": [], "details": {}, "notes": [], "sizes": {}, "config": {}, "backbone": {},
        "checkpoint": {}, "input": {}, "data_fingerprint": "x", "seconds": 1.0, "extraction_seconds": 1.0,
        "created": "2026-01-01T00:00:00Z", "variant": "",
    }  # fmt: skip
    (folder / "results" / "knn-scenes.json").write_text(json.dumps(result))


def test_runs_and_compare_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(home / "runs" / "a", 50.0)
    a_run(home / "runs" / "b", 60.5)
    assert main(["runs", "--json", "--csv", "runs.csv"]) == 0
    listed = {each["path"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["runs/b"]["numbers"] == {"kNN top-1": 60.5}
    assert listed["runs/a"]["state"] == "untrained"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", listed["runs/a"]["changed"])
    assert (home / "runs.csv").exists()
    assert main(["compare", "runs/a", "runs/b", "--json", "--markdown", "table.md"]) == 0
    captured = capsys.readouterr()
    compared = json.loads(captured.out)
    assert "written  table.md" in captured.err
    assert [run["run"] for run in compared["runs"]] == ["a", "b"]
    (metric,) = compared["runs"][1]["metrics"]
    assert metric == {
        "protocol": "knn", "data": "scenes", "name": "top1", "title": "kNN top-1", "value": 60.5, "difference": 10.5,
    }  # fmt: skip
    assert compared["runs"][0]["options"]["knn: selected"] == "k 20"
    assert main(["runs", "nowhere", "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.command
def test_data_check_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_cli import write_photos

    write_photos(home / "photos", classes=2, each=3)
    (home / "photos" / "class0" / "0.png").write_bytes(b"no image")
    assert main(["data", "check", "photos", "workers=0", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["unreadable"]) == ["class0/0.png"] or len(report["unreadable"]) == 1
    assert report["splits"][0]["images"] == 6


@pytest.mark.command
@pytest.mark.parametrize("devices", [1, 2])
def test_eval_as_json(devices: int, home: Path) -> None:
    argv = [
        "eval", "knn", "backbone=tiny_resnet", "data=digit_scenes", "data.train_size=64", "data.val_size=32",
        "data.test_size=32", "precision=fp32", "out=results", "device=cpu", f"devices={devices}", "--json",
    ]  # fmt: skip
    command = [sys.executable, "-m", "ssl_toolkit.cli", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["folder"] == "results"
    assert value["results"] == [json.loads((home / "results" / "knn-digit_scenes.json").read_text())]
    assert "evaluating" in done.stderr
