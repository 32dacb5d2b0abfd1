"""Experiments of one's own: ``experiment=photos.yaml`` is a file, where others are names in ``configs/experiment``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_toolkit.errors import UserError, nearest, unknown

GROUP = "experiment"
SUFFIXES = (".yaml", ".yml")
OVERRIDE = re.compile(r"override\s+/(?P<group>[\w/]+)")


def own_file(override: Override) -> Path | None:
    """The file that ``experiment=PATH.yaml`` names; None for any other override."""
    value = override.value()
    if override.key_or_group != GROUP or not isinstance(value, str) or not value.endswith(SUFFIXES):
        return None
    return Path(value).expanduser()


@contextmanager
def own_experiments(parsed: Sequence[Override], choices: Callable[[str], list[str]]) -> Iterator[list[str]]:
    """The overrides, with each file under a name by which Hydra knows it for the length of the block.

    Args:
        choices: config group to the names in it.

    Raises:
        UserError: a file that is missing or that is no experiment; names it, and what to write.
    """
    given: list[str] = []
    stored: list[str] = []
    store = ConfigStore.instance()
    try:
        for override in parsed:
            path = own_file(override)
            if path is None:
                given.append(override.input_line or "")
                continue
            node = read_experiment(path, choices)
            name = f"own-{re.sub(r'[^a-zA-Z0-9]+', '-', path.stem)}-{len(stored)}"
            store.store(group=GROUP, name=name, node=node, package="_global_")
            stored.append(f"{name}.yaml")
            given.append(f"{GROUP}={name}")
        yield given
    finally:
        for name in stored:
            store.repo[GROUP].pop(name, None)


def read_experiment(path: Path, choices: Callable[[str], list[str]]) -> dict[str, Any]:
    """The YAML file of an experiment, its ``defaults`` checked.

    Raises:
        UserError: it cannot be read, is no mapping, or chooses what there is not.
    """
    if not path.is_file():
        raise UserError(f"{GROUP}={path}: there is no such file; ssl-toolkit init {path} writes one to start from")
    try:
        node = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: {reason}; it must be YAML as ssl-toolkit init writes it") from error
    if not isinstance(node, dict):
        raise UserError(f"{path}: holds no keys; ssl-toolkit init NAME.yaml writes a file to start from")
    entries = node.get("defaults", [])
    if not isinstance(entries, list):
        raise UserError(f"{path}: defaults is a list of '- override /GROUP: NAME'")
    for entry in entries:
        _check_default(path, entry, choices)
    return {str(key): value for key, value in node.items()}


def _check_default(path: Path, entry: Any, choices: Callable[[str], list[str]]) -> None:
    """Refuse an entry of ``defaults`` that Hydra would not find."""
    if isinstance(entry, str):
        if entry != "_self_" and entry not in choices(GROUP):
            raise UserError(f"{path}: defaults: unknown {GROUP} {entry!r}: {nearest(entry, choices(GROUP))}")
        return
    key, value = next(iter(entry.items())) if isinstance(entry, Mapping) and len(entry) == 1 else ("", None)
    found = OVERRIDE.fullmatch(str(key))
    if found is None:
        raise UserError(
            f"{path}: defaults: write '- override /GROUP: NAME' (such as override /backbone: resnet18), not {entry}"
        )
    group = found["group"]
    if not choices(group):
        raise UserError(f"{path}: defaults: there is no group {group!r} to choose from")
    if value not in choices(group):
        raise UserError(f"{path}: {unknown(group, str(value), choices(group))}")


def check_sections(parsed: Sequence[Override], known: Mapping[str, Any], choices: Callable[[str], list[str]]) -> None:
    """Refuse keys at the top of a file that the config does not have: Hydra would add them.

    Args:
        known: the config without the files.

    Raises:
        UserError: naming the file and the nearest keys.
    """
    for path in filter(None, map(own_file, parsed)):
        for key, value in read_experiment(path, choices).items():
            if key == "defaults":
                continue
            if key not in known:
                raise UserError(f"{path}: unknown key {key!r}: {nearest(key, [str(k) for k in known])}")
            if isinstance(known[key], Mapping) and not isinstance(value, Mapping):
                how = (
                    f"choose it by '- override /{key}: {value}' below defaults:" if choices(key) else "it is a section"
                )
                raise UserError(f"{path}: {key}: {value} sets no key; {how}")
