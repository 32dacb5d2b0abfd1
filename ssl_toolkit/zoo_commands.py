"""``ssl-toolkit zoo``: which published checkpoints there are, their files, and all of them under one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_toolkit.config import parse
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.json_output import Emit
from ssl_toolkit.zoo import MEASURES, TABLES, Published, chosen, loadable, zoo_file, zoo_path
from ssl_toolkit.zoo.index import PARTS, percent

ACTIONS = ("list", "show", "download", "evaluate")
SHOWN = {"imagenet_linear": "ImageNet", "voc_linear": "VOC"}
"""Numbers that the list has room for, and their headings."""


def zoo(action: str | None, arguments: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """``ssl-toolkit zoo list | show | download | evaluate``."""
    if action is None or "=" in action:
        raise UserError("name what to do first: ssl-toolkit zoo list, show NAME, download NAME or evaluate [NAMES]")
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if emit is not None and action not in ("list", "show"):
        raise UserError(f"--json is for list and show; zoo {action} has none")
    if action == "list":
        return list_entries(_names("list", arguments), console, emit)
    if action == "show":
        return show(_names("show", arguments), console, emit)
    if action == "download":
        return download(arguments, console)
    from ssl_toolkit.zoo_evaluation_commands import evaluate  # brings all of evaluation along

    return evaluate(arguments, console)


def _names(action: str, arguments: Sequence[str]) -> list[str]:
    if options := [argument for argument in arguments if "=" in argument]:
        raise UserError(f"zoo {action} takes names alone, not {options[0]}")
    return [name for argument in arguments for name in argument.split(",") if name]


def describe(entry: Published) -> dict[str, Any]:
    """An entry as plain values, with what is here of it."""
    plain = {
        key: getattr(entry, key)
        for key in ("name", "method", "arch", "params", "data", "epochs", "alpha", "license", "source", "paper", "note")
    }
    files = {
        part: {**vars(file), "path": str(zoo_path(entry, part)), "cached": zoo_path(entry, part).is_file()}
        for part, file in entry.files.items()
    }
    numbers = {table: dict(row) for table, row in entry.numbers.items()}
    return {**plain, "aliases": list(entry.aliases), "numbers": numbers, "files": files, "problem": loadable(entry)}


def list_entries(names: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """``ssl-toolkit zoo list [names]``: a table of entries."""
    entries = chosen(names)
    if emit is not None:
        emit([describe(entry) for entry in entries])
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption = "percent with a frozen backbone and a linear head, by the VICRegL paper or (a) the authors"
    table.caption_justify = "left"
    table.add_column("name\nmethod, architecture", no_wrap=True)
    for title in ("alpha", *SHOWN.values()):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("licence\nfile", min_width=12, no_wrap=True)
    for entry in entries:
        name = Text(entry.name, style="bold")
        name.append(f"\n{entry.method}, {entry.arch}, {entry.params:g}M", style="not bold dim")
        alpha = "" if entry.alpha is None else f"{entry.alpha:g}"
        numbers = [_number(entry, measure) for measure in SHOWN]
        table.add_row(name, *map(Text, [alpha, *numbers, f"{entry.license}\n{_state(entry)}"]))
    console.print(table)
    return 0


def _number(entry: Published, measure: str) -> str:
    found = entry.number(measure)
    return "" if found is None else f"{percent(round(found[0], 1))}{' (a)' if found[1] == TABLES['authors'] else ''}"


def _state(entry: Published) -> str:
    """Whether a file of an entry is here, or how it would come."""
    if not entry.files:
        return "no file"
    if any(zoo_path(entry, part).is_file() for part in entry.files):
        return "here"
    return "by browser" if entry.file().browser else "to fetch"


def show(names: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """``ssl-toolkit zoo show NAME``: all that is known of entries."""
    if not names:
        raise UserError("say which: ssl-toolkit zoo show NAME; ssl-toolkit zoo list shows all names")
    entries = chosen(names)
    if emit is not None:
        emit([describe(entry) for entry in entries])
        return 0
    for entry in entries:
        console.print(Text(entry.name, style="bold"))
        for what, fact in _facts(entry):
            console.print(f"  {what:13}{fact}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _facts(entry: Published) -> list[tuple[str, str]]:
    training = [entry.data, *([f"{entry.epochs} epochs"] if entry.epochs else [])]
    facts = [
        ("method", entry.method + ("" if entry.alpha is None else f", alpha {entry.alpha:g}")),
        ("architecture", f"{entry.arch}, {entry.params:g}M parameters"),
        ("trained on", ", ".join(training)),
        ("licence", entry.license),
        ("source", entry.source),
        ("paper", entry.paper),
    ]
    facts += [("also", alias) for alias in entry.aliases]
    for part, file in entry.files.items():
        path = zoo_path(entry, part)
        doubt = "" if file.verified else " (not in the authors' page)"
        facts.append((part, f"{file.url}{doubt}"))
        facts.append(("", f"{path}{'' if path.is_file() else ', not here'}"))
        facts += [("", f"{file.hash} as published")] if file.hash else []
    for table, row in entry.numbers.items():
        facts += [(TABLES[table], f"{MEASURES[measure]} {percent(value)}") for measure, value in row.items()]
    facts += [("note", entry.note)] if entry.note else []
    problem = loadable(entry)
    return [*facts, ("loads", f"no: {problem}" if problem else "yes")]


def download(arguments: Sequence[str], console: Console) -> int:
    """``ssl-toolkit zoo download NAME [file=full]``: fetch and check files."""
    names = [name for argument in arguments if "=" not in argument for name in argument.split(",") if name]
    part = None
    for argument in arguments:
        if "=" in argument:
            option = parse(argument)
            if option.key_or_group != "file" or option.value() not in PARTS:
                raise UserError(f"zoo download takes names and file=backbone or file=full, not {argument}")
            part = str(option.value())
    if not names:
        raise UserError("say which: ssl-toolkit zoo download NAME; ssl-toolkit zoo list shows all names")
    entries = chosen(names)
    for entry in entries:  # all of them before any is fetched
        entry.file(part)
    for entry in entries:
        path = zoo_file(entry.name, console, part)
        console.print(f"file     {path}", highlight=False, markup=False, soft_wrap=True)
    return 0
