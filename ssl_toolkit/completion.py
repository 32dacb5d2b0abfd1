"""Completion in bash, zsh and fish: the shell asks ``ssl-toolkit __complete SHELL LINE``, and what the parser and the
configs know is the answer. Without torch, since a person waits for it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from ssl_toolkit.cli_parser import OVERRIDES, build_parser, subparsers_of
from ssl_toolkit.cli_texts import COMMANDS, SHELLS
from ssl_toolkit.errors import UserError, unknown

PROGRAM = "ssl-toolkit"

# bash breaks words at = and :, and replaces only what follows them.
BASH = """\
_ssl_toolkit() {
    local line="${COMP_LINE:0:COMP_POINT}" word kept candidate
    word="${line##*[[:space:]]}"
    kept="${word%"${word##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$kept"}")
    done < <(ssl-toolkit __complete bash "$line" 2>/dev/null)
}
complete -o nospace -F _ssl_toolkit ssl-toolkit
"""
ZSH = """\
#compdef ssl-toolkit
_ssl_toolkit() {
    local -a candidates
    candidates=("${(@f)$(ssl-toolkit __complete zsh "$LBUFFER" 2>/dev/null)}")
    compadd -S '' -- ${candidates:#*[[:space:]]}
    compadd -- ${${(M)candidates:#*[[:space:]]}%[[:space:]]}
}
compdef _ssl_toolkit ssl-toolkit
"""
FISH = """\
complete -c ssl-toolkit -f -a '(ssl-toolkit __complete fish (commandline -cp))'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

FILES = ("root", "file", "val_file", "test_file", "masks", "out", "checkpoint", "runs_dir", "imagenet", "voc", "images")
"""Last parts of keys whose values are paths."""

RUNS = ("run", "init")
"""Keys whose values are run folders."""

CONFIGS = {"demo": "pretrain"}
"""Commands whose config has another name."""


def completion(shell: str) -> int:
    """``ssl-toolkit completion SHELL``: print what the shell is to read."""
    if shell not in SCRIPTS:
        raise unknown("shell", shell, SHELLS)
    print(SCRIPTS[shell], end="")
    return 0


def answer(arguments: Sequence[str]) -> int:
    """``ssl-toolkit __complete SHELL LINE``: print the candidates for the last word of ``LINE``, one a line.

    Those after which the word is done end in a space, but for fish, which knows by itself.
    """
    shell, line = (*arguments, "", "")[:2]
    try:
        found = candidates(split(line))
    except (UserError, OSError):
        found = []  # there is no place for an error in the middle of a line
    for text in found:
        done = not text.endswith(("=", ".", "/", ","))
        print((_escaped(text) if shell == "bash" else text) + (" " if done and shell != "fish" else ""))
    return 0


def split(line: str) -> list[str]:
    """The words of the command that a line ends with; the last one is empty after a space."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # an open quote: what follows it is the last word
        words.append(lexer.token)
    if line[-1:].isspace() and not line.endswith("\\ "):
        words.append("")
    starts = [i for i, word in enumerate(words[:-1]) if Path(word).name == PROGRAM]
    return words[starts[-1] + 1 :] if starts else [""]


def _escaped(text: str) -> str:
    return re.sub(r"([\s'\"\\$&;()<>|*?`!\[\]{}#])", r"\\\1", text)


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of ``words`` may become; the others stand before it."""
    *before, current = words
    if not before:
        return _starting(current, [*COMMANDS, "--help", "--version"])
    if before[0] not in COMMANDS:
        return []
    sub = subparsers_of(build_parser())[before[0]]
    options = {name: action for action in sub._actions for name in action.option_strings}
    asked = options.get(before[-1])
    if asked is not None and asked.nargs != 0:
        return _values(asked, current)
    if current.startswith("-"):
        return _starting(current, [name for name in options if name.startswith("--")])
    return _positional(sub, before, current)


def _positional(sub: argparse.ArgumentParser, before: Sequence[str], current: str) -> list[str]:
    """Candidates for a word that is no option: of the next positional argument, and keys."""
    valued = {name for action in sub._actions if action.nargs != 0 for name in action.option_strings}
    plain = [w for last, w in pairwise(before) if last not in valued and not w.startswith("-") and "=" not in w]
    positions = [action for action in sub._actions if not action.option_strings]
    found: list[str] = []
    if positions and "=" not in current:
        action = positions[min(len(plain), len(positions) - 1)]
        if len(plain) < len(positions) or action.nargs in ("*", "+"):
            found = _values(action, current)
    required = sum(action.nargs is None for action in positions)
    config = _config_name(before[0], plain)
    if config is None or len(plain) < required:
        return found
    given = [word for word in before[1:] if "=" in word]
    return [*found, *(_value_of(config, given, current) if "=" in current else _keys(config, given, current))]


def _config_name(command: str, plain: Sequence[str]) -> str | None:
    """The config that a command's ``key=value`` are of."""
    if command in ("data", "bench"):
        return f"{command}_{plain[0]}" if plain else None
    if command == "zoo":
        return "eval" if plain[:1] == ["evaluate"] else None
    return CONFIGS.get(command, command) if command in OVERRIDES or command == "export" else None


def _values(action: argparse.Action, current: str) -> list[str]:
    """Words for an argument, by what it says of itself; lists take several, comma-separated."""
    kind = getattr(action, "completes", ())
    if kind == "file":
        return _paths(current)
    if kind == "run":
        return _runs(current)
    if kind == "zoo":
        return _several(current, _zoo_names())
    if kind == "study":
        return _several(current, [*_choices("reproduce"), "all"])
    return _several(current, kind) if action.dest == "protocols" else _starting(current, kind)


def _keys(config: str, given: Sequence[str], current: str) -> list[str]:
    """Groups and keys of a config with the choices that were made, a section at a time."""
    from ssl_toolkit.config import compose_config, groups, leaf_keys  # brings Hydra

    def compose(overrides: Sequence[str]) -> list[str]:
        return leaf_keys(compose_config(config, overrides))

    known = [f"{key}=" for key in _tolerant(compose, given)]
    top = {key.split(".")[0] for key in known if "." in key}
    known += [f"{group}=" for group in groups() if group in top or (group == "experiment" and config == "pretrain")]
    depth = current.count(".")
    sections = {".".join(key.split(".")[: depth + 1]) + ("." if key.count(".") > depth else "") for key in known}
    return _starting(current, sorted(sections))


def _tolerant(compose: Callable[[Sequence[str]], list[str]], given: Sequence[str]) -> list[str]:
    """The keys with as many of the options as can be had: others may be half written."""
    for chosen in (given, [word for word in given if "." not in word], []):
        try:
            return compose(chosen)
        except UserError:
            continue
    return []


def _value_of(config: str, given: Sequence[str], current: str) -> list[str]:
    """Values of a key: choices of a group, run folders, names of the zoo, paths, or true and false."""
    key, _, value = current.partition("=")
    last = key.rsplit(".", 1)[-1]
    if choices := _choices(key):
        found = _starting(value, choices) + (_paths(value, (".yaml", ".yml")) if key == "experiment" else [])
    elif last in RUNS:
        found = _runs(value)
    elif last == "zoo":
        found = _starting(value, _zoo_names())
    elif last in FILES:
        found = _paths(value)
    else:
        found = _starting(value, _booleans(config, given, key))
    return [f"{key}={each}" for each in found]


def _booleans(config: str, given: Sequence[str], key: str) -> list[str]:
    from omegaconf import OmegaConf

    from ssl_toolkit.config import compose_config

    def compose(overrides: Sequence[str]) -> list[str]:
        is_bool = isinstance(OmegaConf.select(compose_config(config, overrides), key), bool)
        return ["true", "false"] if is_bool else []

    return _tolerant(compose, given)


def _starting(current: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(current)]


def _several(current: str, words: Iterable[str]) -> list[str]:
    """Comma-separated words: those that are not named yet, after those that are."""
    done, comma, last = current.rpartition(",")
    named = done.split(",")
    return [f"{done}{comma}{word}" for word in words if word.startswith(last) and word not in named]


def _choices(group: str) -> list[str]:
    """Names in a group of configs, without Hydra, which takes a while to import."""
    folder = Path(str(resources.files("ssl_toolkit.configs"))) / group
    if not group.isidentifier() or not folder.is_dir():
        return []
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _zoo_names() -> list[str]:
    """Names of the zoo, by a look at its files: to read them whole takes longer."""
    spec = find_spec("ssl_toolkit.zoo")  # imports nothing
    names: list[str] = []
    for path in sorted(Path(((spec and spec.submodule_search_locations) or ["."])[0]).glob("*.yaml")):
        names += re.findall(r"^  ([a-z0-9][\w.-]*):$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return names


def _paths(current: str, suffixes: Sequence[str] = ()) -> list[str]:
    """Files and folders that a path may become, folders with a slash; files by suffix where some are given."""
    start, slash, name = current.rpartition("/")
    folder = Path(f"{start}{slash}").expanduser()
    found: list[str] = []
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(name) or (entry.name.startswith(".") and not name):
                continue
            if entry.is_dir() or not suffixes or entry.name.endswith(tuple(suffixes)):
                found.append(f"{start}{slash}{entry.name}{'/' if entry.is_dir() else ''}")
    return sorted(found)


def _runs(current: str) -> list[str]:
    """Run folders: those in ``runs`` as long as nothing is written, else folders by name; runs end without a slash."""
    found = _paths(current or ("runs/" if Path("runs").is_dir() else ""))
    folders = [path for path in found if path.endswith("/")]
    return [path.rstrip("/") if (Path(path).expanduser() / "config.yaml").is_file() else path for path in folders]
