"""The reference of options: every YAML of configs/ with its keys, defaults and comments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from repository import ROOT
from yaml.nodes import MappingNode, Node, SequenceNode

CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, its value as the YAML has it, and the comment beside or above it."""

    name: str
    value: str
    comment: str


@dataclass(frozen=True)
class Document:
    """One YAML: the comment at its top, the names in its defaults list, and its keys."""

    about: str
    defaults: list[str]
    keys: list[Key]


def read(path: Path) -> Document:
    """What ``path`` says."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    top = [line for line in _leading(lines) if not line.startswith("# @package")]
    root = yaml.compose(text)
    keys: list[Key] = []
    defaults: list[str] = []
    if isinstance(root, MappingNode):
        for key, value in root.value:
            if key.value == "defaults":
                defaults = [_default(item) for item in yaml.safe_load(text)["defaults"]]
            else:
                keys += _keys(key, value, "", lines, text)
    return Document(" ".join(line.lstrip("# ").rstrip() for line in top), defaults, keys)


def _leading(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def _default(item: Any) -> str:
    """``method: vicregl`` of ``{"method": "vicregl"}``."""
    if isinstance(item, dict):
        ((group, choice),) = item.items()
        return f"{group}: {'null' if choice is None else choice}"
    return str(item)


def _keys(key: Node, value: Node, prefix: str, lines: list[str], text: str) -> Iterator[Key]:
    """The key and those inside it; items of a list of sections are numbered, as on the command line."""
    name = f"{prefix}{key.value}"
    inside: list[tuple[str, MappingNode]] = []
    if isinstance(value, MappingNode) and value.value:
        inside = [(f"{name}.", value)]
    elif isinstance(value, SequenceNode) and value.value and all(isinstance(v, MappingNode) for v in value.value):
        inside = [(f"{name}.{i}.", item) for i, item in enumerate(value.value)]
    if not inside:
        yield Key(name, _shown(value, text), _comment(key, value, lines))
        return
    comment = _comment(key, key, lines)
    if comment:
        yield Key(name, "", comment)
    for start, section in inside:
        for k, v in section.value:
            yield from _keys(k, v, start, lines, text)


def _shown(value: Node, text: str) -> str:
    """The value as it can be written on one line."""
    if isinstance(value, SequenceNode) and not value.flow_style:
        items = [yaml.SafeLoader("").construct_object(item, deep=True) for item in value.value]
        return yaml.safe_dump(items, default_flow_style=True, width=math.inf).strip()
    return " ".join(text[value.start_mark.index : value.end_mark.index].split())


def _comment(key: Node, value: Node, lines: list[str]) -> str:
    """The comment after the value, or else the lines of comment right above the key."""
    line = lines[value.end_mark.line] if value.end_mark.line < len(lines) else ""
    _, mark, beside = line[value.end_mark.column :].partition("#")
    if mark:
        return beside.strip()
    above: list[str] = []
    number = key.start_mark.line - 1
    while number > 0 and lines[number].strip().startswith("#") and lines[number].startswith(" "):
        above.insert(0, lines[number].strip().lstrip("# "))
        number -= 1
    return " ".join(above)


def groups() -> dict[str, list[str]]:
    """Choices of each config group, those in its folders with theirs (``paper/NAME``)."""
    return {
        folder.name: sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and any(folder.rglob("*.yaml"))
    }


def commands() -> list[str]:
    """Configs of commands: the YAMLs at the top of configs/."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def nav(folder: str) -> list[Any]:
    """What stands in the nav."""
    return [
        f"{folder}index.md",
        *({_title(name): f"{folder}ssl-{name}.md"} for name in commands()),
        *({f"{name}=": f"{folder}{name}.md"} for name in groups()),
    ]


def _title(name: str) -> str:
    return name.replace("_", " ")


def pages(folder: str) -> dict[str, str]:
    """Path and Markdown of every page."""
    found = {f"{folder}index.md": _index()}
    for name in commands():
        document = read(CONFIGS / f"{name}.yaml")
        path = f"configs/{name}.yaml"
        found[f"{folder}ssl-{name}.md"] = f"# {_title(name)}\n\n`{path}`: {_body(document, None)}"
    for group, choices in groups().items():
        parts = [f"# {group}=\n"]
        for choice in choices:
            document = read(CONFIGS / group / f"{choice}.yaml")
            anchor = choice.replace("/", "-").lower()
            parts.append(f"## {choice} {{ #{anchor} }}\n\n{_body(document, group)}")
        found[f"{folder}{group}.md"] = "\n".join(parts)
    return found


def _index() -> str:
    lines = [
        "# Options\n",
        "Each command composes its options from `configs/`. A key is set as `key=value`, a group is chosen as",
        "`group=name`. An unknown key stops with one line before any work.\n",
        "| command | options |",
        "|---|---|",
        *(f"| `{_title(name)}` | [configs/{name}.yaml](ssl-{name}.md) |" for name in commands()),
        "",
        "| group | choices |",
        "|---|---|",
    ]
    for group, choices in groups().items():
        links = ", ".join(f"[{c}]({group}.md#{c.replace('/', '-').lower()})" for c in choices)
        lines.append(f"| `{group}=` | {links} |")
    return "\n".join(lines) + "\n"


def _body(document: Document, group: str | None) -> str:
    """The comment, where other keys come from, and the table of keys."""
    parts = [f"{_cell(document.about)}\n"] if document.about else []
    taken = [item for item in document.defaults if item != "_self_"]
    if taken:
        what = ", ".join(_linked(item, group) for item in taken)
        parts.append(f"{'Groups and their defaults' if group is None else 'Takes what these say'}: {what}.\n")
    if document.keys:
        parts += ["| key | default | |", "|---|---|---|"]
        prefix = f"{group}." if group in PREFIXED else ""
        parts += [f"| `{prefix}{key.name}` | {_code(key.value)} | {_cell(key.comment)} |" for key in document.keys]
    return "\n".join(parts) + "\n"


PREFIXED = ("method", "backbone", "data", "views", "optimizer", "launcher")
"""Groups whose keys stand in a section of the group's name; a protocol's stand in one of its own name."""


def _linked(item: str, group: str | None) -> str:
    """An item of a defaults list, with a link to its place."""
    key, _, choice = item.rpartition(": ")
    section = key.removeprefix("override ").lstrip("/").partition("@")[0]
    name = section.split("/")[0] or (group or "")
    if name not in groups():
        return f"`{item}`"
    full = "/".join([*section.split("/")[1:], choice])
    known = full in groups()[name]
    return f"[`{item}`]({name}.md{'#' + full.replace('/', '-').lower() if known else ''})"


def _code(value: str) -> str:
    return f"`{value}`".replace("|", "\\|") if value else ""


def _cell(text: str) -> str:
    """Text that is no Markdown: a comment may hold anything."""
    for mark in ("\\", "*", "_", "`", "|", "[", "<"):
        text = text.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return text
