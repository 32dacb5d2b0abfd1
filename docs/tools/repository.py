"""Links from pages to files of the repository, which the site shows on pages of its own."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that lie at the top of the repository."""

SHOWN = "reference/source/"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".md": "markdown", "": "make"}
_LINK = re.compile(r"(?<!!)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


class Links:
    """The links of one page.

    Args:
        page: its path in docs/ (``tutorials/dali.md``).
    """

    def __init__(self, page: str) -> None:
        self.page = page
        # In the repository: where links of this page start from.
        self.folder = posixpath.dirname(ROOT_PAGES.get(page, f"docs/{page}"))

    def _target(self, link: str) -> str | None:
        """The file of the repository that ``link`` means, where it lies outside docs/."""
        path = posixpath.normpath(posixpath.join(self.folder, link))
        return path if not path.startswith(("docs/", "..")) or self.page in ROOT_PAGES else None

    def place(self, link: str) -> str | None:
        """Where on the site (a path in docs/, perhaps with an anchor) ``link`` leads; None where it can stay."""
        path = self._target(link)
        if path is None or not (ROOT / path).exists():
            return None  # mkdocs names links that lead nowhere
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        for page, source in ROOT_PAGES.items():
            if path == source:
                return page
        return _config_place(path) or (f"{SHOWN}{path}.md" if (ROOT / path).is_file() else None)

    def sources(self, text: str) -> list[str]:
        """The pages with a file's text that ``text`` links to."""
        places = (self.place(link) for link, _ in _LINK.findall(text))
        return [place for place in places if place and place.startswith(SHOWN)]

    def rewritten(self, text: str) -> str:
        """``text`` with links that lead to places on the site."""

        def rewrite(found: re.Match[str]) -> str:
            place = self.place(found[1])
            if place is None:
                return found[0]
            page, _, anchor = place.partition("#")
            link = posixpath.relpath(page, posixpath.dirname(self.page) or ".")
            return f"]({link}{found[2] or (anchor and '#' + anchor)})"

        return _LINK.sub(rewrite, text)


def _config_place(path: str) -> str | None:
    """The place in the reference of a file or folder of configs/."""
    if not path.startswith("configs/"):
        return None
    parts = path.removeprefix("configs/").removesuffix(".yaml").split("/")
    if len(parts) == 1:
        return f"reference/config/{parts[0]}.md" if (ROOT / path).is_dir() else f"reference/config/ssl-{parts[0]}.md"
    return f"reference/config/{parts[0]}.md#{'-'.join(parts[1:]).lower()}"


def source_page(page: str) -> str:
    """The page that shows a file."""
    path = page.removeprefix(SHOWN).removesuffix(".md")
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "`" * 6
    language = LANGUAGES.get(Path(path).suffix, "text")
    header = yaml.safe_dump({"title": path, "search": {"exclude": True}})
    return f"---\n{header}---\n\n# `{path}`\n\n{fence}{language}\n{text}{fence}\n"
