"""The pages of the Python interface: what the public modules export, described by mkdocstrings."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from repository import ROOT

PACKAGES = ("methods", "configs", "zoo")
"""At the top of the repository, inside ``ssl_toolkit`` where it is installed."""

MODULES = {
    "ssl_toolkit": "Load a backbone in one line.",
    "ssl_toolkit.methods": "VICReg, VICRegL, SimCLR, SimCLR-L, and the base class of a new one.",
    "ssl_toolkit.criteria": "Losses on groups of vectors.",
    "ssl_toolkit.matching": "Which local feature of one view goes with which of another.",
    "ssl_toolkit.views": "Views with crop boxes, and the engines that make them.",
    "ssl_toolkit.backbones": "Names to networks with feature maps and a pooled vector.",
    "ssl_toolkit.data": "Data sets by name.",
    "ssl_toolkit.training": "Runs: start, resume, read.",
    "ssl_toolkit.evaluation": "Protocols, and what they return.",
    "ssl_toolkit.embedding": "Features of a folder of images.",
    "ssl_toolkit.pictures": "What a backbone sees, as arrays.",
    "ssl_toolkit.zoo": "Published checkpoints.",
    "ssl_toolkit.registry": "How names stand for parts.",
    "ssl_toolkit.errors": "What goes wrong, in one line.",
}


def package_tree() -> Path:
    """A folder with the package as it is installed, for a reader of source files; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ssl-toolkit-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    only_code = shutil.ignore_patterns("__pycache__", "*.html")
    shutil.copytree(ROOT / "ssl_toolkit", folder / "ssl_toolkit", ignore=only_code)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "ssl_toolkit" / name, ignore=only_code)
    return folder


def _page(module: str) -> str:
    return f"{module.replace('.', '-').replace('_', '-')}.md"


def nav(folder: str) -> list[Any]:
    """What stands in the nav."""
    return [f"{folder}index.md", *({module: f"{folder}{_page(module)}"} for module in MODULES)]


def pages(folder: str) -> dict[str, str]:
    """Path and Markdown of every page."""
    rows = [f"| [`{module}`]({_page(module)}) | {what} |" for module, what in MODULES.items()]
    found = {f"{folder}index.md": "# Python\n\n| module | |\n|---|---|\n" + "\n".join(rows) + "\n"}
    for module, what in MODULES.items():
        found[f"{folder}{_page(module)}"] = f"# {module}\n\n{what}\n\n::: {module}\n"
    return found
