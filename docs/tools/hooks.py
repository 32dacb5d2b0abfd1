"""MkDocs hook: pages that are made from the code, links out of docs/, equations.

- ``reference/``: the command line from its parsers, every key from ``configs/*.yaml``, the Python interface from the
  public modules. Made while the site is built, so they cannot be older than the code.
- A link to a file of the repository (``../configs/method/vicregl.yaml``) leads to that key's place in the reference,
  or to a page that shows the file: the site needs no network.
- A picture is a link to its file, since lines of text in it are too small to read on a phone.
- Equations become MathML here, so that pages need no script and no font to show them.
"""

from __future__ import annotations

import re
from typing import Any

import api_pages
import cli_pages
import config_pages
from equations import with_equations
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import ROOT, ROOT_PAGES, Links, source_page

REFERENCE = "reference/config/"
API = "reference/api/"

PICTURE = re.compile(r"^!\[(.+)\]\((\S+)\)$", re.MULTILINE)
"""A picture on a line of its own."""


@event_priority(100)  # before mkdocstrings reads its options, and before the nav is checked
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say where the Python packages lie, and fill in the parts of the nav that are generated."""
    options = config.plugins["mkdocstrings"].config.handlers["python"]
    options["paths"] = [str(api_pages.package_tree())]
    config.nav = _filled(config.nav)
    return config


def _filled(nav: Any) -> Any:
    """The nav with generated pages in place of their folders."""
    if isinstance(nav, list):
        return [_filled(item) for item in nav]
    if isinstance(nav, dict):
        return {title: _filled(value) for title, value in nav.items()}
    return {REFERENCE: config_pages.nav, API: api_pages.nav}.get(nav, lambda _: nav)(nav)


def generated() -> dict[str, str]:
    """Every generated page: its path in docs/ and its Markdown."""
    pages = {
        "reference/index.md": cli_pages.INDEX,
        "reference/cli.md": cli_pages.page(),
        **config_pages.pages(REFERENCE),
        **api_pages.pages(API),
    }
    for page, source in ROOT_PAGES.items():
        pages[page] = (ROOT / source).read_text(encoding="utf-8")
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and a page for each file of the repository that a page links to."""
    pages = generated()
    own = {file.src_uri: file.content_string for file in files.documentation_pages()}
    shown: dict[str, str] = {}
    for path, text in {**own, **pages}.items():
        for source in Links(path).sources(text):
            shown[source] = source_page(source)
    for path, text in {**pages, **shown}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to places on the site; a picture leads to itself, to be read on a small screen."""
    return PICTURE.sub(r"[![\1](\2)](\2)", Links(page.file.src_uri).rewritten(markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations as MathML.

    Raises:
        PluginError: an equation that cannot be converted, by page.
    """
    try:
        return with_equations(html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
