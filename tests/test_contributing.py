"""The worked example of CONTRIBUTING.md: its two files, put in place, are a method that trains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import quick_overrides

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(path: str, language: str) -> str:
    """The block that stands below the name of a file."""
    found = re.search(rf"`{re.escape(path)}`:\n\n```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    assert found is not None, path
    return found.group(1)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as it is installed, with the example's files in it."""
    tree = tmp_path_factory.mktemp("extended")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ssl_toolkit", tree / "ssl_toolkit", ignore=ignore)
    for name in ("methods", "configs", "zoo"):
        shutil.copytree(ROOT / name, tree / "ssl_toolkit" / name, ignore=ignore)
    package = tree / "ssl_toolkit"
    (package / "methods" / "simsiam.py").write_text(example("methods/simsiam.py", "python"), encoding="utf-8")
    (package / "configs" / "method" / "simsiam.yaml").write_text(example("configs/method/simsiam.yaml", "yaml"))
    return tree


def run(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.command
def test_the_example_trains_in_parts_and_is_evaluated(extended: Path) -> None:
    small = ["method.projector.widths=[32,32]", "method.hidden=16", "trainer.steps=2", "trainer.accumulate=2"]
    options = [each for each in quick_overrides(extended / "runs") if not each.startswith("experiment=")]
    command = ["-m", "ssl_toolkit.cli"]
    said = run(extended, *command, "pretrain", "experiment=digits", "method=simsiam", *options, *small, "name=new")
    assert "simsiam" in said
    run(extended, *command, "eval", "knn", "run=runs/new", "precision=fp32")
    assert (extended / "runs" / "new" / "results" / "knn-digit_scenes.json").exists()


CHECK = """
import torch
from omegaconf import OmegaConf
import ssl_toolkit
from ssl_toolkit.config import compose_config
from ssl_toolkit.methods import METHODS
from ssl_toolkit.registry import typed

assert ssl_toolkit.__file__.startswith({tree!r})
config = OmegaConf.to_container(compose_config("pretrain", ["method=simsiam"]).method)
schema = METHODS.entry(config.pop("name")).schema
assert typed(schema, config, "method") == schema()

from tests.helpers import TinyBackbone, random_batch
torch.manual_seed(0)
method = METHODS.build({{"name": "simsiam", "projector": {{"widths": [8, 8]}}, "hidden": 5}}, backbone=TinyBackbone())
batch = random_batch(sizes=(32, 32, 24))
output = method(batch)
p, z = zip(*(each.chunk(2, dim=1) for each in method.embed(batch).whole))
def cosine(a, b):
    return sum(float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b)) / len(a)
pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
expected = -sum(cosine(p[n], z[m]) for m, n in pairs) / len(pairs)
assert abs(float(output.loss) - expected) < 1e-5, (output.loss, expected)
output.loss.backward()
assert all(parameter.grad is not None for parameter in method.parameters())
print("checked")
"""


@pytest.mark.command
def test_the_example_computes_what_it_says(extended: Path) -> None:
    shutil.copytree(
        ROOT / "tests", extended / "tests", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    assert "checked" in run(extended, "-c", CHECK.format(tree=str(extended)))


def test_the_example_keeps_the_house_rules(tmp_path: Path) -> None:
    path = tmp_path / "simsiam.py"
    path.write_text(example("methods/simsiam.py", "python"), encoding="utf-8")
    options = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, str(path)], capture_output=True, text=True
        )
        assert ruff.returncode == 0, ruff.stdout


def test_what_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", TEXT, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"^\| `([\w/.]+/)` \|", TEXT, flags=re.MULTILINE):
        assert (ROOT / path).is_dir(), path
