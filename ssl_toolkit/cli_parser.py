"""The parser of the command line, whose errors are one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ssl_toolkit import __version__
from ssl_toolkit.cli_texts import (
    COMMANDS,
    DATA_ACTIONS,
    EXITS,
    PICTURES,
    PROTOCOLS,
    SHELLS,
    SUITES,
    TASKS,
    ZOO_ACTIONS,
)
from ssl_toolkit.errors import UserError, unknown

OVERRIDES = {
    "pretrain": "groups and keys of configs/pretrain.yaml",
    "eval": "groups and keys of configs/eval.yaml",
    "reproduce": "keys of configs/reproduce.yaml; others go to every run",
    "picture": "groups and keys of configs/picture.yaml",
    "bench": "keys of configs/bench_<suite>.yaml",
    "demo": "keys of configs/pretrain.yaml, for both methods",
    "embed": "groups and keys of configs/embed.yaml",
}
"""Commands that take ``key=value``, and of what."""

JSON = {
    "eval": "print the results as JSON",
    "runs": "print the list as JSON",
    "compare": "print the comparison as JSON",
    "data": "check: print the report as JSON",
    "zoo": "list and show: as JSON",
    "doctor": "print the findings as JSON",
}
"""Commands whose output a program may want, and how its help says so."""

WORDS = ("overrides", "words")
"""Where a command has them."""

Parsers = Mapping[str, argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """argparse's, but that an error is a `UserError` with an example."""

    example = ""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` in one line."""
        example = f"; for example: {self.example}" if self.example else ""
        raise UserError(f"{self.prog}: {message}{example} ({self.prog} --help shows more)")


def overview() -> str:
    """The commands by task."""
    width = max(map(len, COMMANDS)) + 2
    blocks = []
    for task in TASKS:
        lines = [f"  {name:{width}}{each.summary}" for name, each in COMMANDS.items() if each.task == task]
        blocks.append("\n".join([f"{task}:", *lines]))
    return "\n\n".join(blocks)


def _epilog() -> str:
    width = max(len(str(status)) for status in EXITS) + 2
    statuses = "\n".join(f"  {status:<{width}}{meaning}" for status, meaning in EXITS.items())
    return (
        f"{overview()}\n\nexit status:\n{statuses}\n\n"
        "Start with ssl-toolkit demo, or with your own images: ssl-toolkit init photos.yaml --images photos.\n"
        "ssl-toolkit COMMAND --help has examples."
    )


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="ssl-toolkit",
        usage="ssl-toolkit COMMAND [key=value ...]",
        description="Self-supervised visual features that are good globally and locally.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ssl-toolkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, prog="ssl-toolkit")
    subparsers: dict[str, argparse.ArgumentParser] = {}
    for name, (_, summary, examples) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="\n  ".join(("examples:", *examples)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.example = examples[0].split("  ")[0]
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparsers[name] = sub
    for add in (_training, _evaluating, _comparing, _data, _models, _machine):
        add(subparsers)
    for name, what in OVERRIDES.items():
        _add(subparsers[name], "overrides", nargs="*", default=[], metavar="key=value", help=what)
    for name, what in JSON.items():
        subparsers[name].add_argument("--json", action="store_true", help=what)
    return parser


def _add(parser: argparse.ArgumentParser, *names: str, completes: Sequence[str] | str = (), **options: Any) -> None:
    """An argument, and the words it may be completed with, or of what kind they are: ``file``, ``run`` or ``zoo``."""
    action = parser.add_argument(*names, **options)
    action.completes = completes  # type: ignore[attr-defined]


def _training(parsers: Parsers) -> None:
    several = "one run per combination of values (seed=0,1,2)"
    parsers["pretrain"].add_argument("-m", "--multirun", action="store_true", help=several)
    _add(
        parsers["init"], "file", nargs="?", default="experiment.yaml", metavar="FILE", help="experiment.yaml by default"
    )
    _add(parsers["init"], "--images", metavar="FOLDER", help="your images, written into it", completes="file")
    _add(parsers["replay"], "file", metavar="FILE", help="a failed step of a run", completes="file")


def _evaluating(parsers: Parsers) -> None:
    _add(parsers["eval"], "protocols", help=f"comma-separated, of {', '.join(PROTOCOLS)}", completes=PROTOCOLS)
    _add(
        parsers["reproduce"],
        "studies",
        help="comma-separated: table3, table4, ..., or all",
        completes="study",
    )
    _add(parsers["picture"], "kind", help="matches, pca, similarity or map", completes=PICTURES)


def _comparing(parsers: Parsers) -> None:
    _add(
        parsers["runs"], "folder", nargs="?", default="runs", metavar="FOLDER", help="runs by default", completes="file"
    )
    _add(parsers["runs"], "--csv", metavar="FILE", help="also write the list as CSV", completes="file")
    _add(parsers["compare"], "runs", nargs="+", metavar="RUN", help="run folders", completes="run")
    _add(parsers["compare"], "--html", metavar="FILE", help="also write a self-contained page", completes="file")
    for kind in ("csv", "markdown", "latex"):
        _add(parsers["compare"], f"--{kind}", metavar="FILE", help=f"also write the table as {kind}", completes="file")
    _add(parsers["report"], "run", metavar="RUN", help="run folder", completes="run")


def _data(parsers: Parsers) -> None:
    _add(
        parsers["data"],
        "action",
        nargs="?",
        help="check: status 0 where all images are fine, 1 where some are unreadable or lie in two splits; preview",
        completes=DATA_ACTIONS,
    )
    _add(
        parsers["data"],
        "arguments",
        nargs="*",
        default=[],
        metavar="PATH or key=value",
        help="a folder or list to check; keys of configs/data_check.yaml, groups and keys of configs/data_preview.yaml",
        completes="file",
    )


def _models(parsers: Parsers) -> None:
    _add(parsers["zoo"], "action", nargs="?", help="list, show, download or evaluate", completes=ZOO_ACTIONS)
    _add(
        parsers["zoo"],
        "arguments",
        nargs="*",
        default=[],
        metavar="NAMES or key=value",
        help="names, aliases or patterns, comma-separated; for download file=backbone or full; for evaluate also "
        "protocols, comma-separated, and groups and keys of configs/eval.yaml",
        completes="zoo",
    )
    _add(
        parsers["export"],
        "words",
        nargs="*",
        default=[],
        metavar="RUN or key=value",
        help="run folder; groups and keys of configs/export.yaml",
        completes="run",
    )
    beside = "as out=; beside the weights by default"
    _add(parsers["export"], "--out", metavar="FILE", help=beside, completes="file")
    which = "of RUN: last (default), best or epoch-0010"
    _add(parsers["export"], "--checkpoint", metavar="NAME", help=which, completes=("last", "best"))
    _add(parsers["embed"], "images", metavar="IMAGES", help="folder, 'pattern' or list file", completes="file")
    _add(parsers["embed"], "--out", metavar="FILE", help="as out=; features.npz by default", completes="file")


def _machine(parsers: Parsers) -> None:
    _add(parsers["bench"], "suite", help=f"of {', '.join(SUITES)}", completes=SUITES)
    _add(
        parsers["doctor"],
        "paths",
        nargs="*",
        default=[],
        metavar="PATH",
        help="data to look at: folders, lists",
        completes="file",
    )
    _add(parsers["completion"], "shell", help=", ".join(SHELLS), completes=SHELLS)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, ``key=value`` before and after an option alike, which argparse alone does not allow.

    Raises:
        UserError: an unknown command or option, or an argument that is missing or too much.
    """
    parser = build_parser()
    _check_command(argv)
    args, rest = parser.parse_known_args(argv)
    words = next((getattr(args, name) for name in WORDS if hasattr(args, name)), None)
    if words is not None and not any(word.startswith("-") for word in rest):
        words.extend(rest)
    elif rest:
        _refuse(rest, args.command, parser)
    return args


def _check_command(argv: Sequence[str]) -> None:
    """Refuse a first word that is no command; argparse would list all of them."""
    if not argv or argv[0].startswith("-") or argv[0] in COMMANDS:
        return
    word = argv[0]
    if "=" in word:
        raise UserError(f"name the command first: ssl-toolkit pretrain {word}; ssl-toolkit alone shows all commands")
    near = difflib.get_close_matches(word, COMMANDS, n=3, cutoff=0.5)
    if near:
        raise unknown("command", word, COMMANDS)
    raise UserError(f"unknown command {word!r}: there are {', '.join(COMMANDS)}")


def _refuse(rest: Sequence[str], command: str | None, parser: argparse.ArgumentParser) -> NoReturn:
    """Say what to do with words that nothing takes."""
    sub: argparse.ArgumentParser = subparsers_of(parser).get(command or "", parser)
    option = next((word for word in rest if word.startswith("-")), None)
    if option is None:
        sub.error(f"too many arguments: {' '.join(rest)}")
    known = [name for action in sub._actions for name in action.option_strings]
    name, _, value = option.lstrip("-").partition("=")
    near = difflib.get_close_matches(option.split("=")[0], known, n=1, cutoff=0.7)
    if near:
        sub.error(f"unknown option {option}: did you mean {near[0]}?")
    if command in OVERRIDES or command in ("data", "zoo", "export"):
        sub.error(f"unknown option {option}: keys are written without dashes, {name}={value or 'VALUE'}")
    sub.error(f"unknown option {option}: valid: {', '.join(known)}")


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name."""
    action = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)
