"""The generated reference has every key and command, and pages mention no key that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ssl_toolkit.config import choices, groups
from tests.docs.pages import DOCS, ROOT

config_pages = pytest.importorskip("config_pages")
CONFIGS = ROOT / "configs"
SECTIONS = {"method", "backbone", "data", "views", "optimizer", "launcher"}
"""Groups whose keys stand in a section of their name."""


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all keys of a loaded YAML; items of a list of sections by number."""
    if isinstance(values, list) and values and all(isinstance(v, dict) for v in values):
        for i, item in enumerate(values):
            yield from flat(item, f"{prefix}{i}.")
    elif isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), values


def loaded(path: str) -> list[tuple[str, Any]]:
    values = yaml.safe_load((CONFIGS / path).read_text(encoding="utf-8")) or {}
    values.pop("defaults", None)
    return [] if not values else list(flat(values))


FILES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))
PAGES: dict[str, str] = config_pages.pages("")


@pytest.mark.parametrize("path", FILES)
def test_every_key_is_in_the_reference(path: str) -> None:
    group, _, name = path.removesuffix(".yaml").rpartition("/")
    group, _, folder = group.partition("/")
    if group:
        anchor = f"{folder}/{name}".strip("/").replace("/", "-").lower()
        section = rf"^## [^\n]* {{ #{re.escape(anchor)} }}\n(.*?)(?=^## |\Z)"
        (text,) = re.findall(section, PAGES[f"{group}.md"], flags=re.S | re.M)
    else:
        text = PAGES[f"ssl-{name}.md"]
    rows = dict(re.findall(r"^\| `([^`]+)` \| `?(.*?)`? \| .*\|$", text, flags=re.M))
    prefix = f"{group}." if group in SECTIONS else ""
    for key, value in loaded(path):
        assert f"{prefix}{key}" in rows, key
        shown = rows[f"{prefix}{key}"].replace("\\|", "|")
        assert yaml.safe_load(shown) == value, key


def test_comments_are_beside_their_keys() -> None:
    keys = {k.name: k for k in config_pages.read(CONFIGS / "pretrain.yaml").keys}
    assert keys["trainer.batch_size"] == config_pages.Key(
        "trainer.batch_size", "256", "images a step, on all devices together"
    )
    assert config_pages.read(CONFIGS / "method" / "vicregl.yaml").about.startswith("VICRegL (Bardes")
    nested = {k.name: k.comment for k in config_pages.read(CONFIGS / "views" / "small.yaml").keys}
    assert nested["groups.0.size"] == "side in pixels"


def test_comments_hold_no_markdown(tmp_path: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# top\nkey: [1, 2] # a | b, *c* <d>\n# @end\nother:\n  # of two\n  # lines\n  inner: 'a # b'\n")
    document = config_pages.read(file)
    assert [tuple(vars(k).values()) for k in document.keys] == [
        ("key", "[1, 2]", "a | b, *c* <d>"),
        ("other.inner", "'a # b'", "of two lines"),
    ]
    assert r"a \| b, \*c\* &lt;d>" in config_pages._body(document, None)


def every_key() -> set[str]:
    """Keys as they are written on the command line, and their sections."""
    found: set[str] = set()
    for path in FILES:
        group, _, name = path.removesuffix(".yaml").rpartition("/")
        for key, _ in loaded(path):
            full = re.sub(r"\.\d+\.", ".0.", key)
            if group in SECTIONS:
                full = f"{group}.{full}"
            elif group.startswith("protocol"):
                full = f"{name}.{full}"
            found |= {full[: match.start()] for match in re.finditer(r"\.|$", full)}
    return found


def mentioned(text: str) -> set[str]:
    """Dotted names in code that begin with a section, without values: ``trainer.batch_size=8``."""
    sections = SECTIONS | {"trainer", "monitor", "features", *choices("protocol")}
    spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    words = [w for span in spans for w in re.split(r"[\s=,'\"\[\](){}]+", span)]
    dotted = {w for w in words if re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", w)}
    return {w for w in dotted if w.split(".")[0] in sections and w.rsplit(".")[-1] not in NOT_KEYS}


NOT_KEYS = {
    *("md", "py", "yaml", "html", "txt", "csv", "json", "npz", "npy", "parquet", "png", "svg"),
    *("parts", "ckpt", "safetensors", "pt2", "pth", "onnx"),
}
"""Endings of files."""

PAGES_WITH_KEYS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES_WITH_KEYS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_key_that_pages_mention_exists(page: Any) -> None:
    text = page.read_text(encoding="utf-8")
    known = every_key()
    # A key of a data set's or another choice's own is enough: data.root is not of every data set.
    missing = {re.sub(r"\.\d+\.", ".0.", key) for key in mentioned(text)} - known
    missing -= {key for key in missing if key.split(".")[0] in ("backbone", "data") and _is_module(key)}
    assert not missing, missing


def _is_module(key: str) -> bool:
    return (ROOT / "ssl_toolkit" / key.replace(".", "/")).with_suffix(".py").exists()


def test_groups_of_the_reference_are_those_of_the_package() -> None:
    assert sorted(config_pages.groups()) == groups()
    for name, found in config_pages.groups().items():
        assert found == choices(name)
        assert f"{name}.md" in PAGES


def test_every_command_is_on_its_page() -> None:
    import cli_pages

    from ssl_toolkit.cli_texts import COMMANDS

    page = cli_pages.page()
    for name, command in COMMANDS.items():
        assert f"## ssl-toolkit {name}\n" in page
        for example in command.examples:
            assert example in page
