"""The wheel and the source distribution hold what the source tree holds, and the wheel works elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = ("methods", "configs", "zoo")
KEPT = (".py", ".yaml", ".html", ".typed")
"""Suffixes of files that a package needs."""

BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, f'build_{sys.argv[1]}')(sys.argv[2]))"


def run(*command: str, cwd: Path, **environment: str) -> str:
    settings = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, since building leaves folders behind."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "runs", "site")
    copy.mkdir()
    for name in ("ssl_toolkit", *TOP, "tests", "docs", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    names = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
    for name in (*names, "hubconf.py", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def built(kind: str, source: Path) -> Path:
    """Build by setuptools, as ``python -m build --no-isolation`` does."""
    out = source.parent / "dist"
    out.mkdir(exist_ok=True)
    return out / run(sys.executable, "-c", BUILD, kind, str(out), cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return built("wheel", source)


def expected(tree: Path) -> set[str]:
    """Every file of the package as the wheel is to have it: folders at the top inside of the package."""
    found = {path.relative_to(tree).as_posix() for path in (tree / "ssl_toolkit").rglob("*") if path.suffix in KEPT}
    for top in TOP:
        inside = {path.relative_to(tree).as_posix() for path in (tree / top).rglob("*") if path.suffix in KEPT}
        found |= {f"ssl_toolkit/{name}" for name in inside}
    found |= {"ssl_toolkit/py.typed"}
    return found


@pytest.mark.command
def test_the_wheel_holds_every_file_of_the_package(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected(source)
    assert "ssl_toolkit/configs/experiment/paper/vicregl_resnet50_alpha0p75.yaml" in names
    assert "ssl_toolkit/py.typed" in names


def test_no_file_of_the_package_is_of_a_kind_that_is_left_out() -> None:
    for top in ("ssl_toolkit", *TOP):
        files = [path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.suffix for path in files if path.name != "py.typed"} <= set(KEPT), top


@pytest.mark.command
def test_the_source_distribution_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    archive = built("sdist", source)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    (unpacked,) = tmp_path.iterdir()
    assert expected(unpacked) == expected(source)
    for name in (
        "methods/vicregl.py",
        "configs/pretrain.yaml",
        "zoo/vicregl.yaml",
        "tests/helpers.py",
        "docs/architecture.md",
    ):
        assert (unpacked / name).is_file(), name
    again = built("wheel", unpacked)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel; what it depends on is read from this environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=wheel.parent)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(str(python), "-c", code, cwd=folder).strip())
    install = ("-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    run(sys.executable, *install, cwd=folder)
    # a line of a .pth adds a path; the .pth files in it, such as that of an editable install, are not read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


WHERE = """
import ssl_toolkit, ssl_toolkit.configs, ssl_toolkit.methods, ssl_toolkit.zoo, sys
for module in (ssl_toolkit, ssl_toolkit.configs, ssl_toolkit.methods, ssl_toolkit.zoo):
    assert module.__file__.startswith(sys.prefix), module.__file__
"""


@pytest.mark.slow
def test_the_wheel_runs_the_demo_from_another_folder(python: Path, tmp_path: Path) -> None:
    from tests.test_demo import SMALL

    run(str(python), "-c", WHERE, cwd=tmp_path, PYTHONPATH="")
    program = python.parent / "ssl-toolkit"
    assert "ssl-toolkit 0" in run(str(program), "--version", cwd=tmp_path, PYTHONPATH="")
    said = run(str(program), "demo", *SMALL, cwd=tmp_path, PYTHONPATH="")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.html").is_file()
    assert "kNN top-1" in said
    run(str(program), "init", "photos.yaml", cwd=tmp_path, PYTHONPATH="")
    assert "vicregl_resnet50_alpha0p75" in run(str(program), "zoo", "list", "--json", cwd=tmp_path, PYTHONPATH="")


DOWNSTREAM = """\
from pathlib import Path

import torch

from ssl_toolkit import load_backbone
from ssl_toolkit.criteria import VICRegCriterion
from ssl_toolkit.methods import METHODS, VICRegLConfig
from ssl_toolkit.methods.base import MethodOutput


def features(path: Path, images: torch.Tensor) -> torch.Tensor:
    return load_backbone(path)(images).pooled


options: VICRegLConfig = VICRegLConfig(alpha=0.5)
names: list[str] = METHODS.names()
loss: torch.Tensor = VICRegCriterion().views([torch.randn(4, 8)] * 2, 2).total


def weight(output: MethodOutput) -> float:
    return float(output.loss)
"""
WRONG = """\
from ssl_toolkit.methods import VICRegLConfig

VICRegLConfig(alpha="half")
"""


@pytest.mark.slow
def test_types_of_the_wheel_reach_other_code(python: Path, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(DOWNSTREAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    # without the path of the dependencies' environment, mypy has to find the package in the wheel's
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--strict"]
    run(*mypy, "right.py", cwd=tmp_path)
    done = subprocess.run([*mypy, "wrong.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Argument "alpha" to "VICRegLConfig" has incompatible type "str"' in done.stdout
