"""The site builds without a warning, its links lead somewhere, and it fetches nothing from the network."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import DOCS, ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("material")
equations = pytest.importorskip("equations")

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "use": "href"}
FIGURES = 1.5e6
"""Bytes that the committed figures may take."""


class Page(HTMLParser):
    """Links, anchors and what is loaded, of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.loaded.append(values.get("href", ""))
        if LOADED.get(tag) in values:
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    # 404.html has no place of its own: its links are from the top of a server.
    files = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path: Page(path.read_text(encoding="utf-8")) for path in files}


def test_every_page_is_there(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    assert not (site / "tools").exists()


def test_links_and_anchors_exist(site: Path, pages: dict[Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            file = (path.parent / target).resolve() if target else path
            if file.is_dir():
                file = file / "index.html"
            assert file.is_file(), f"{path.relative_to(site)}: {link}"
            assert not anchor or file not in pages or anchor in pages[file].anchors, f"{path.relative_to(site)}: {link}"
            checked += 1
    assert checked > 1000


def test_nothing_is_fetched(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for file in page.loaded:
            if file.startswith("data:"):
                continue
            assert not re.match(r"([a-z]+:)?//", file), f"{path.relative_to(site)} loads {file}"
            place = path.parent / unquote(file.partition("#")[0])
            assert place.resolve().is_file(), f"{path.relative_to(site)}: {file}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    # material's script would fetch these two: for a diagram, and for browsers of before 2020
    assert not any('class="mermaid"' in path.read_text(encoding="utf-8") for path in pages)


def test_search_has_an_index_that_needs_no_server(site: Path) -> None:
    text = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("var __index = "))
    found = {doc["location"].partition("#")[0] for doc in index["docs"]}
    assert {"index.html", "concepts/vicregl.html", "reference/config/ssl-pretrain.html"} <= found
    home = (site / "index.html").read_text(encoding="utf-8")
    assert '<script src="assets/iframe-worker-1.0.4.js">' in home
    assert "unpkg.com" not in home


def test_equations_are_rendered(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'class="arithmatex"' not in text, path
        source = DOCS / path.relative_to(site).with_suffix(".md")
        if source.is_file() and source.parent.name == "concepts":
            marked = len(re.findall(r"^\$\$$", source.read_text(encoding="utf-8"), flags=re.M)) // 2
            assert text.count('display="block"') == marked, path
    assert (site / "concepts/vicreg.html").read_text(encoding="utf-8").count("<math ") > 15


@pytest.mark.parametrize(("latex", "shown"), [(r"\frac{1}{D}", "mfrac"), (r"\lambda \, s", "&#x003BB;")])
def test_an_equation_becomes_mathml(latex: str, shown: str) -> None:
    page = equations.with_equations(rf'<p><span class="arithmatex">\({latex}\)</span></p>')
    assert "<math " in page
    assert shown in page


def test_an_unknown_command_in_an_equation_stops_the_build() -> None:
    with pytest.raises(ValueError, match=r"\\nonsense"):
        equations.with_equations(r'<div class="arithmatex">\[\nonsense{3}\]</div>')


def test_no_markdown_is_left(pages: dict[Path, Page], site: Path) -> None:
    for path in pages:
        text = re.sub(r"<(pre|code).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        body = text.partition("<article")[2].partition("</article>")[0]
        left = re.search(r"<p>[^<]*\n(- |\d\. |\|)|<p>(- |```|#+ |\|)", body)
        assert left is None, f"{path.relative_to(site)}: {body[left.start() : left.start() + 200]}" if left else ""


def test_pictures_lead_to_themselves(site: Path) -> None:
    for page in ("index.html", "concepts/local-matching.html", "architecture.html"):
        text = (site / page).read_text(encoding="utf-8")
        shown = re.findall(r'<img [^>]*src="([^"]+\.(?:png|svg))"', text)
        assert shown
        assert re.findall(r'<a [^>]*href="([^"]+)"[^>]*><img ', text) == shown


def test_figures_are_small() -> None:
    figures = list((DOCS / "figures").iterdir())
    assert sum(path.stat().st_size for path in figures) < FIGURES
    used = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for path in figures:
        assert f"figures/{path.name}" in used, f"{path.name} is on no page"


def test_options_of_mkdocstrings_exist() -> None:
    """With pydantic installed mkdocstrings passes over unknown ones; without, as in the ``docs`` extra, it stops."""
    handler = pytest.importorskip("mkdocstrings_handlers.python")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    block = re.search(r"^          options:\n((?:            .*\n)+)", text, flags=re.MULTILINE)
    assert block is not None
    given = set(re.findall(r"^            (\w+):", block.group(1), flags=re.MULTILINE))
    assert "docstring_style" in given
    assert given <= {field.name for field in dataclasses.fields(handler.PythonInputOptions)}
