"""Completion: what each word may become, and that bash, zsh and fish take it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ssl_toolkit.cli import main
from ssl_toolkit.cli_texts import COMMANDS, SHELLS
from ssl_toolkit.completion import candidates, split
from ssl_toolkit.config import choices, compose_config, leaf_keys
from ssl_toolkit.zoo import zoo


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").touch()
    (tmp_path / "runs" / "sweep" / "second").mkdir(parents=True)
    (tmp_path / "my photos").mkdir()
    (tmp_path / "photos.yaml").touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def complete(line: str) -> list[str]:
    return candidates(split(f"ssl-toolkit {line}"))


def test_commands_options_and_words(home: Path) -> None:
    assert complete("") == [*COMMANDS, "--help", "--version"]
    assert complete("pre") == ["pretrain"]
    assert complete("nothing ") == []
    assert set(complete("runs --")) == {"--help", "--debug", "--csv", "--json"}
    assert complete("data ") == ["check", "preview"]
    assert complete("zoo s") == ["show"]
    assert complete("completion ") == list(SHELLS)
    assert complete("bench s") == ["step", "scaling"]
    assert complete("picture p") == ["pca"]
    assert complete("export runs/first --checkpoint ") == ["last", "best"]
    assert "table3" in complete("reproduce ")
    assert complete("reproduce table3,table4,table1") == ["table3,table4,table11"]


def test_protocols_are_a_list_without_repeats(home: Path) -> None:
    assert complete("eval knn,lin") == ["knn,linear", "knn,linear_augmented"]
    assert complete("eval knn,k") == []


def test_groups_keys_and_values(home: Path) -> None:
    assert complete("pretrain method=") == [f"method={name}" for name in choices("method")]
    assert complete("pretrain experiment=paper/vicreg_res") == [
        "experiment=paper/vicreg_resnet50",
        "experiment=paper/vicreg_resnet50_100ep",
        "experiment=paper/vicreg_resnet50_300ep",
    ]
    assert complete("pretrain trainer.dev") == ["trainer.device=", "trainer.devices="]
    assert complete("pretrain tra") == ["trainer."]
    assert complete("pretrain method=simclr method.t") == ["method.temperature="]
    assert complete("pretrain method=broken trainer.dev") == ["trainer.device=", "trainer.devices="]
    assert complete("pretrain trainer.compile=") == ["trainer.compile=true", "trainer.compile=false"]
    assert complete("pretrain -m see") == ["seed="]
    assert complete("eval knn knn.") == [f"knn.{key}=" for key in sorted(compose_config("eval").knn)]
    assert complete("eval run=") == []  # protocols come first
    assert complete("data preview co") == ["count="]
    assert complete("bench knn k") == ["ks="]
    assert complete("zoo evaluate x kn") == ["knn."]
    assert "experiment=" not in complete("eval knn ")


def test_every_key_of_pretrain_can_be_reached(home: Path) -> None:
    reached: set[str] = set()
    waiting = [""]
    while waiting:
        for found in complete(f"pretrain {waiting.pop()}"):
            if found.endswith("."):
                waiting.append(found)
            else:
                reached.add(found.removesuffix("="))
    assert set(leaf_keys(compose_config("pretrain"))) <= reached


def test_runs_files_and_names_of_the_zoo(home: Path) -> None:
    assert complete("pretrain run=") == ["run=runs/first", "run=runs/sweep/"]
    assert complete("compare runs/first runs/sw") == ["runs/sweep/"]
    assert complete("pretrain experiment=ph") == ["experiment=photos.yaml"]
    assert complete("pretrain data=folder data.root=my") == ["data.root=my photos/"]
    assert complete(r"data check my\ ph") == ["my photos/"]
    assert complete("replay n") == ["notes.txt"]
    assert complete("doctor my") == ["my photos/"]
    assert complete("eval knn checkpoint=nowhere/") == []
    names = complete("zoo show ")
    assert set(zoo()) <= set(names)
    assert complete("eval knn zoo=vicregl_resnet50_alpha0p9") == ["zoo=vicregl_resnet50_alpha0p9"]


def test_the_command_is_found_in_a_line() -> None:
    assert split("cd x; ssl-toolkit pre") == ["pre"]
    assert split("OMP_NUM_THREADS=1 /usr/bin/ssl-toolkit eval ") == ["eval", ""]
    assert split("ssl-toolkit data check 'my ph") == ["data", "check", "my ph"]
    assert split("ls ") == [""]


def test_answers_are_lines_and_mistakes_are_silent(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["__complete", "bash", "ssl-toolkit data check my"]) == 0
    assert "my\\ photos/\n" in capsys.readouterr().out
    assert main(["__complete", "fish", "ssl-toolkit ex"]) == 0
    assert capsys.readouterr().out == "export\n"
    assert main(["__complete", "bash", "ssl-toolkit embed nowhere/"]) == 0
    assert main(["__complete"]) == 0
    assert capsys.readouterr().err == ""


SOURCED = {
    "bash": """
source <(ssl-toolkit completion bash)
try() {{ COMP_LINE="$1"; COMP_POINT=${{#1}}; _ssl_toolkit; printf '<%s>' "${{COMPREPLY[@]}}"; echo; }}
try '{line}'
""",
    "fish": "ssl-toolkit completion fish | source; complete -C '{line}'",
}
ANSWERS = {
    ("bash", "ssl-toolkit ex"): "<export >",
    ("bash", "ssl-toolkit pretrain backbone=resnet50"): "<resnet50 ><resnet50x2 >",
    ("bash", "ssl-toolkit pretrain run="): "<runs/first ><runs/sweep/>",
    ("fish", "ssl-toolkit ex"): "export",
    ("fish", "ssl-toolkit pretrain backbone=resnet50"): "backbone=resnet50\nbackbone=resnet50x2",
}


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ssl-toolkit`` of this Python, first on the path."""
    import sys

    program = tmp_path / "bin" / "ssl-toolkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ssl_toolkit.cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.command
@pytest.mark.parametrize(("shell", "line"), list(ANSWERS))
def test_shells_take_it(shell: str, line: str, home: Path, on_path: None) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = SOURCED[shell].format(line=line)
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == ANSWERS[shell, line], done.stderr


@pytest.mark.command
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_it(home: Path, on_path: None) -> None:
    """``compadd`` itself works only at a prompt: one of our own tells what it was given."""
    script = """
compdef() {}
compadd() { shift $((${@[(i)--]})); (( $# )) && printf '<%s>' "$@"; }
source <(ssl-toolkit completion zsh)
LBUFFER='ssl-toolkit pretrain run=' _ssl_toolkit
"""
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "<run=runs/sweep/><run=runs/first>", done.stderr
