"""Every command and every piece of code in the tutorials runs, at sizes of seconds, in the order of its page."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_toolkit.config import compose_config
from ssl_toolkit.reproduction import read_study
from tests.docs.pages import EXTENDING, ROOT, Block, blocks, commands, tutorial, tutorials
from tests.test_cli import write_photos
from tests.test_readme import run_documented

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def check_elsewhere(argv: list[str]) -> bool:
    """Whether the command is not for this machine; then what it says about this project is checked."""
    if argv[0] in ("torchrun", "srun"):
        words = argv[argv.index("pretrain") + 1 :]
        compose_config("pretrain", words)
    elif argv[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extra in re.findall(r"ssl-toolkit\[(\w+)\]", " ".join(argv)):
            assert extra in extras
    elif argv[:2] == ["ssl-toolkit", "reproduce"]:  # README runs it; here that its studies and seeds are right
        for name in argv[2].split(","):
            assert read_study(name).rows
        assert compose_config("reproduce", argv[3:]).seeds
    else:
        assert argv[0] == "ssl-toolkit", argv
        return False
    return True


@pytest.mark.command
@pytest.mark.parametrize("name", [n for n in tutorials() if n not in EXTENDING])
def test_tutorials_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "dali" and not HAS_DALI:
        pytest.skip("DALI is not installed")
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", classes=2, each=12)
    for block in blocks(tutorial(name)):
        if block.language == "sh":
            for argv in commands(block):
                if not check_elsewhere(argv):
                    run_documented(argv[1:], tmp_path, capsys)
        elif block.language == "python":
            exec(compile(block.text, f"{name}.md", "exec"), {})
        else:
            assert block.language == "text"


RUN = """
import sys
from pathlib import Path

import pytest

tests, names, pages = sys.argv[1].split(), sys.argv[2], sys.argv[3].split()
found = pytest.main(["-q", "-p", "no:cacheprovider", *tests, "tests/test_configs.py", "-k", names])
assert found == 0, found

from tests.docs.pages import blocks, commands, tutorial
from tests.test_readme import run_documented

for page in pages:
    for block in blocks(tutorial(page)):
        for argv in commands(block) if block.language == "sh" else []:
            run_documented(argv[1:], Path.cwd(), None)
"""


def write_block(block: Block, tree: Path) -> str | None:
    """Put a titled block where its title says; the path of it where that is a test."""
    added = block.title.removeprefix("add to ")
    if added.startswith(("methods/", "configs/")):
        added = f"ssl_toolkit/{added}"  # where it is installed
    file = tree / added
    if block.title.startswith("add to "):
        file.write_text(file.read_text() + "\n\n" + block.text)
        return None
    assert file.parent.is_dir(), block.title
    assert not file.exists(), block.title
    file.write_text(block.text)
    return added if added.startswith("tests/") else None


@pytest.mark.command
def test_worked_examples_become_part_of_the_package(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "golden")
    for folder, place in (
        ("ssl_toolkit", "ssl_toolkit"),
        ("methods", "ssl_toolkit/methods"),
        ("configs", "ssl_toolkit/configs"),
        ("zoo", "ssl_toolkit/zoo"),
        ("tests", "tests"),
        ("docs/tutorials", "docs/tutorials"),
    ):
        shutil.copytree(ROOT / folder, tmp_path / place, ignore=ignored)
    shutil.copy(ROOT / "README.md", tmp_path)
    titled = [block for page in EXTENDING for block in blocks(tutorial(page)) if block.title]
    assert len(titled) == 11
    tests = [test for test in (write_block(block, tmp_path) for block in titled) if test]
    assert len(tests) == len(EXTENDING)
    arguments = [" ".join(tests), "barlow_twins or sklearn_digits or conv_mixer or terms or splits or shapes"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, " ".join(EXTENDING)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "runs/barlow/results/knn-digit_scenes.json").is_file()
    assert (tmp_path / "runs/digits/results/linear-sklearn_digits.json").is_file()
    assert (tmp_path / "runs/mixer/backbone.safetensors").is_file()
