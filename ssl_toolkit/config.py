"""Composing Hydra configs, with errors that say what to do."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_toolkit.errors import UserError, nearest
from ssl_toolkit.own_experiment import GROUP, check_sections, own_experiments, own_file

if TYPE_CHECKING:
    from importlib.abc import Traversable

CONFIGS = "ssl_toolkit.configs"


def choices(group: str) -> list[str]:
    """Names of the YAML files of a config group (``method``), those in its folders with theirs (``paper/NAME``)."""
    folder = resources.files(CONFIGS) / group
    return sorted(_yaml_names(folder)) if folder.is_dir() else []


def _yaml_names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _yaml_names(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".yaml"):
            yield prefix + item.name.removesuffix(".yaml")


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted(p.name for p in resources.files(CONFIGS).iterdir() if p.is_dir() and choices(p.name))


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """``configs/<name>.yaml`` with ``overrides``, in Hydra's grammar; ``experiment=PATH.yaml`` is a file.

    Raises:
        UserError: an unknown group, choice or key (with the nearest valid ones), an override that cannot be parsed, or
            a file that is no experiment.
    """
    parsed = [parse(override) for override in overrides]
    for override in parsed:
        _check_choice(override)
    try:
        if any(map(own_file, parsed)):
            check_sections(parsed, OmegaConf.to_container(_composed(name, [])), choices)  # type: ignore[arg-type]
        config = _composed(name, parsed)
        _check_leftovers(config, name, parsed)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, name, parsed) from error
    return config


def _check_leftovers(config: DictConfig, name: str, parsed: Sequence[Override]) -> None:
    """Refuse keys that an experiment sets for its own choice of a group where the user chose another.

    Raises:
        UserError: naming the keys, and the overrides that leave them out.
    """
    experiment = next((o for o in parsed if o.key_or_group == GROUP and isinstance(o.value(), str)), None)
    chosen = [o for o in parsed if o.key_or_group in groups() and o is not experiment]
    if experiment is None or not chosen:
        return
    alone = _composed(name, chosen)
    given = {o.key_or_group for o in parsed}
    for override in chosen:
        group = override.key_or_group
        known, found = ({str(key) for key in each.get(group) or ()} for each in (alone, config))
        if extra := sorted(key for each in found - known if (key := f"{group}.{each}") not in given):
            raise UserError(
                f"experiment={experiment.value()} sets {', '.join(extra)}, which {group}={override.value()} does not "
                f"have: leave out what it sets by adding {' '.join(repr('~' + key) for key in extra)}"
            )


def _composed(name: str, parsed: Sequence[Override]) -> DictConfig:
    with initialize_config_module(CONFIGS, version_base="1.3"), own_experiments(parsed, choices) as given:
        return compose(name, overrides=given)


def parse(override: str) -> Override:
    """One override, by Hydra's own parser."""
    if "=" not in override and not override.startswith("~"):
        raise UserError(f"{override!r} is not an option: write key=value, such as trainer.epochs=10")
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {override!r}: {reason}; quote values with spaces or brackets") from error


def _check_choice(override: Override) -> None:
    key = override.key_or_group
    values = override.value()
    if key not in groups() or override.is_delete() or not isinstance(values, str):
        return
    if values not in choices(key) and own_file(override) is None:
        file = f"; the file {values}.yaml is experiment={values}.yaml" if Path(f"{values}.yaml").is_file() else ""
        raise UserError(f"unknown {key} {values!r}: {nearest(values, choices(key))}{file if key == GROUP else ''}")


def _explained(error: Exception, name: str, parsed: Sequence[Override]) -> UserError:
    """Find the override at fault and name the nearest keys."""
    chosen = [o for o in parsed if o.key_or_group in groups()]
    plain = UserError(re.sub(r"\s+", " ", str(error)).strip())
    try:
        known = leaf_keys(_composed(name, chosen))
    except (HydraException, OmegaConfBaseException):
        return plain
    for override in parsed:
        key = override.key_or_group
        if key in groups() or key in known or override.is_add() or key.startswith("hydra"):
            continue
        prefix = any(k.startswith(f"{key}.") for k in known)
        if not prefix:
            chosen_groups = [g for g in groups() if any(k.startswith(f"{g}.") for k in known)]
            others = [GROUP] if name == "pretrain" else []
            hint = _elsewhere(key, parsed, known) or _nearest_key(key, [*known, *chosen_groups, *others])
            return UserError(f"unknown key {key!r}: {hint}")
    return plain


def _elsewhere(key: str, parsed: Sequence[Override], known: Sequence[str]) -> str:
    """Which other choices of a group have a key; empty where none has, or where the group was chosen."""
    group, _, rest = key.partition(".")
    if not rest or group not in groups() or any(o.key_or_group in (group, GROUP) for o in parsed):
        return ""
    folder = resources.files(CONFIGS) / group
    first = rest.split(".")[0]
    if any(k.startswith(f"{group}.{first}.") for k in known):
        return ""
    have = [c for c in choices(group) if re.search(rf"^{re.escape(first)}:", (folder / f"{c}.yaml").read_text(), re.M)]
    if not have:
        return ""
    have.sort(key=lambda choice: choice != "folder")  # of data, what most people have
    shown = ", ".join(f"{group}={each}" for each in have[:5])
    return f"{shown}{', ...' if len(have) > 5 else ''} have it; choose one of them before it"


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """Close keys: by spelling of the whole, or of the last part in any section."""
    last = key.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    found = list(dict.fromkeys([*same[:3], *close]))[:3]
    if found:
        return "did you mean " + " or ".join(repr(k) for k in found) + "?"
    return nearest(key, {k.split(".")[0] for k in known})


def leaf_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of all values of a config."""
    keys: list[str] = []
    for key in config:
        node = config._get_node(key)
        name = f"{prefix}{key!s}"
        if OmegaConf.is_dict(node) and not node._is_none():  # type: ignore[union-attr]
            keys += leaf_keys(node, f"{name}.")  # type: ignore[arg-type]
        else:
            keys.append(name)
    return keys


def override_of(key: str, value: object) -> str:
    """``key=value`` with the value quoted for Hydra's grammar, whatever a path holds."""
    # backslashes are themselves in this grammar, but for those before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return f"{key}='{escaped}'"


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether an override has several values (``seed=0,1,2``), which needs ``-m``."""
    return any(parse(o).is_sweep_override() for o in overrides)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of a sweep, as Hydra's basic sweeper makes them."""
    lists = []
    for override in overrides:
        parsed = parse(override)
        key = parsed.get_key_element()
        lists.append(
            [f"{key}={value}" for value in parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [override]
        )
    return [list(job) for job in itertools.product(*lists)]
