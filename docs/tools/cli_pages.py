"""The page of the command line, from its parsers."""

from __future__ import annotations

import argparse
import os

from ssl_toolkit.cli_parser import build_parser, subparsers_of
from ssl_toolkit.cli_texts import EXITS

WIDTH = "100"
INDEX = """# Reference

- [Command line](cli.md): every command, as `ssl-toolkit COMMAND --help` prints it.
- [Options](config/index.md): every config group and key, with its default and what it does.
- [Python](api/index.md): the public modules.

These pages are made from the code when the site is built.
"""


def page() -> str:
    """Markdown of the page."""
    parser = build_parser()
    parts = [
        "# Command line\n",
        "What `--help` prints. Options written `key=value` are in [Options](config/index.md).\n",
    ]
    parts.append(f"```text\n{_help(parser)}```\n")
    for name, sub in subparsers_of(parser).items():
        parts.append(f"## ssl-toolkit {name}\n\n```text\n{_help(sub)}```\n")
    parts += ["## Exit status\n", "| status | |", "|---|---|"]
    parts += [f"| {status} | {meaning} |" for status, meaning in EXITS.items()]
    return "\n".join(parts) + "\n"


def _help(parser: argparse.ArgumentParser) -> str:
    """The help at a fixed width and without colours, whatever terminal the site is built in."""
    before = {key: os.environ.get(key) for key in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=WIDTH, NO_COLOR="1")
    try:
        return parser.format_help()
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
