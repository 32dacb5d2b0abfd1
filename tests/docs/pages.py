"""What the tests of the site share: its pages, their blocks, and the modules that make the others."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOOLS = str(DOCS / "tools")
if TOOLS not in sys.path:
    sys.path.append(TOOLS)

EXTENDING = ("add-method", "add-data-set", "add-backbone")
"""Tutorials that write into the package."""


class Block(NamedTuple):
    """One fenced block: its language, the file it is to be written to, its text."""

    language: str
    title: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', text, flags=re.DOTALL | re.MULTILINE)
    return [Block(*parts) for parts in found]


def commands(block: Block) -> list[list[str]]:
    """The commands of a ``sh`` block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def tutorials() -> list[str]:
    """Names of the tutorials."""
    return sorted(path.stem for path in (DOCS / "tutorials").glob("*.md"))


def tutorial(name: str) -> str:
    """The text of one."""
    return (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
