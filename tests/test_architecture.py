"""The page of imports is current, and dependencies point one way."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / ".ci" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["architecture"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(architecture: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert architecture.main(["--check"]) == 0, capsys.readouterr().out + "make architecture draws it anew"


def test_dependencies_point_one_way(architecture: ModuleType) -> None:
    edges = architecture.graph()
    assert architecture.cycles(edges) == []
    assert edges["core"] == {}
    assert edges["criteria"].keys() <= {"core"}
    assert edges["matching"].keys() <= {"core"}
    assert edges["reporting"].keys() <= {"core"}
    assert "training" not in edges["evaluation"]
    assert not edges["methods"].keys() & {"training", "evaluation", "data"}
    assert not {"data", "views"} & {p for p in edges if edges[p].keys() & {"methods", "criteria", "training"}}


def test_cycles_would_be_found(architecture: ModuleType) -> None:
    edges = {"a": {"b": {"x"}}, "b": {"c": {"x"}}, "c": {"b": {"x"}}}
    assert architecture.cycles(edges) == [["b", "c"]]


def test_imports_are_read_from_functions_but_not_for_types(architecture: ModuleType) -> None:
    text = """
from typing import TYPE_CHECKING
from ssl_toolkit import training, __version__
import ssl_toolkit.views.spec
import torch
if TYPE_CHECKING:
    from ssl_toolkit.methods import Method
def f():
    from ssl_toolkit.zoo.index import zoo
"""
    found = list(architecture.imports(ast.parse(text)))
    assert found == [
        "ssl_toolkit.training",
        "ssl_toolkit.__version__",
        "ssl_toolkit.views.spec",
        "ssl_toolkit.zoo.index",
    ]
    parts = [architecture.part_of(name) for name in found]
    assert parts == ["training", "core", "views", "zoo"]


def test_every_import_is_drawn_or_follows(architecture: ModuleType) -> None:
    edges = architecture.graph()
    drawn: dict[str, dict[str, set[str]]] = {part: {} for part in edges}
    for part, other in architecture.direct(edges):
        drawn[part][other] = set()
    for part in edges:
        assert architecture.reachable(drawn, part) == architecture.reachable(edges, part)
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    assert len(re.findall(r"marker-end", picture)) == len(architecture.direct(edges))
    assert set(re.findall(r">([a-z]+)</text>", picture)) == set(edges)
