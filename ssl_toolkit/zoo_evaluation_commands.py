"""``ssl-toolkit zoo evaluate``: protocols over published checkpoints, each once, into one table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import evaluation
from ssl_toolkit.backbones.probe import reason
from ssl_toolkit.config import override_of, parse
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import SPLITS, ImageDataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.eval_commands import MINI_DATA, eval_data_config
from ssl_toolkit.eval_commands import evaluate as evaluate_one
from ssl_toolkit.files import read_json, sha256, write_json, write_text
from ssl_toolkit.processes.world import told_world
from ssl_toolkit.reproduction import code_digest
from ssl_toolkit.reproduction.identity import EVALUATED_BY
from ssl_toolkit.zoo import Published, chosen, loadable, published, zoo, zoo_file, zoo_path
from ssl_toolkit.zoo.index import is_pattern
from ssl_toolkit.zoo_table import Column, ZooTable, as_csv, as_dict, markdown, terminal

OUT = "zoo-evaluation"
DONE = "done.json"
"""In the folder of an entry: which results are finished, and what they were made with."""

MINI_PROTOCOLS = ("knn", "linear", "segmentation")
PAPER_PROTOCOLS = ("linear_augmented", "segmentation_augmented")
"""What is measured where no protocol is named, on `MINI_DATA` and elsewhere, as far as the data has labels or masks."""

OURS = ("run", "checkpoint", "zoo", "backbone", "protocol")
"""Keys of ``eval`` that have no meaning here."""


@dataclass(frozen=True)
class Plan:
    """What a command asks for.

    Attributes:
        overrides: of ``configs/eval.yaml``, without ``out``.
        settings: protocol to a hash of all that its results depend on but the checkpoint.
        left_out: entries that are not evaluated, and why.
    """

    entries: list[Published]
    left_out: dict[str, str]
    protocols: list[str]
    overrides: list[str]
    data: str
    out: Path
    settings: dict[str, str]


def evaluate(arguments: Sequence[str], console: Console) -> int:
    """Evaluate entries by protocols, reuse what is finished, and write the table.

    Raises:
        UserError: an unknown name, protocol or key, data that does not suit; or, when the table is written, evaluations
            that failed.
    """
    if told_world() is not None:
        raise UserError("start zoo evaluate once, not by torchrun or srun; devices=N starts the processes itself")
    plan = _plan(arguments)
    jobs = [(entry, name) for entry in plan.entries if entry.name not in plan.left_out for name in plan.protocols]
    failed: dict[tuple[str, str], str] = {}
    for i, (entry, protocol) in enumerate(jobs):
        what = f"[{i + 1}/{len(jobs)}] {entry.name}: {protocol}"
        try:
            finished = _finished(plan, entry, protocol)
            console.print(f"{what}{', finished before' if finished else ''}", highlight=False, markup=False)
            if not finished:
                _run(plan, entry, protocol, console)
        except UserError as error:
            failed[entry.name, protocol] = str(error)
        except Exception as error:  # out of memory and whatever else: the others go on
            log = _folder(plan, entry) / f"{protocol}-error.log"
            write_text(log, traceback.format_exc())
            failed[entry.name, protocol] = f"{type(error).__name__}: {reason(error)} ({log})"
        if (entry.name, protocol) in failed:
            console.print(f"failed: {failed[entry.name, protocol]}", highlight=False, markup=False, soft_wrap=True)
    _write(_table(plan, failed), plan, arguments, console)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} evaluations failed; the same command tries them again")
    return 0


def _plan(arguments: Sequence[str]) -> Plan:
    plain = [name for argument in arguments if "=" not in argument for name in argument.split(",") if name]
    given = [argument for argument in arguments if "=" in argument]
    keys = [parse(argument).key_or_group for argument in given]
    for key in keys:
        if key in OURS:
            raise UserError(f"{key}= is not for zoo evaluate: it takes names of checkpoints and protocols, and data=")
    if "data" not in keys:
        raise UserError("say on what: data=digit_scenes, or data=imagenet data.root=PATH")
    names, asked = _sorted(plain)
    entries = chosen(names)
    left_out = {entry.name: why for entry in entries if (why := loadable(entry))}
    for name in names:
        if not is_pattern(name) and published(name).name in left_out:
            raise UserError(f"zoo checkpoint {name} cannot be evaluated: {left_out[published(name).name]}")
    config, data = eval_data_config(given)
    options = evaluation.eval_config(config)
    datasets = {split: build_dataset(data, split) for split in SPLITS}
    protocols = _suitable(asked, data.name, datasets, options)
    settings = {name: _settings(name, config, data, options, datasets) for name in protocols}
    overrides = [argument for argument, key in zip(given, keys) if key != "out"]
    out = Path(OUT if config.out is None else config.out)
    return Plan(entries, left_out, protocols, overrides, str(data.name), out, settings)


def _sorted(plain: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of checkpoints, and of protocols, whichever way round they were given."""
    known = evaluation.PROTOCOLS.names()
    protocols = [name for name in plain if name in known]
    names = [name for name in plain if name not in known]
    entries = zoo()
    every = [*entries, *(alias for entry in entries.values() for alias in entry.aliases)]
    for name in names:
        if name not in every and not is_pattern(name):
            raise unknown("zoo checkpoint or protocol", name, [*every, *known])
    return names, list(dict.fromkeys(protocols))


def _suitable(
    asked: Sequence[str], data: str, datasets: Mapping[str, ImageDataset], options: evaluation.EvalConfig
) -> list[str]:
    """The protocols asked for, or those usual for the data as far as it has what they need.

    Raises:
        UserError: one that was asked for needs labels, masks or objects that the data does not have, or none suits.
    """
    usual = MINI_PROTOCOLS if data in MINI_DATA else PAPER_PROTOCOLS
    suited = []
    for name, protocol in evaluation.chosen_protocols(asked or usual, options).items():
        missing = [need for need in protocol.needs if not all(_has(d, need) for d in datasets.values())]
        if missing and asked:
            raise UserError(f"{name} needs {missing[0]}: data set {data} has none; leave it out, or use other data")
        suited += [] if missing else [name]
    if not suited:
        raise UserError(
            f"data set {data} has neither labels nor masks for {' or '.join(usual)}: name protocols that suit"
        )
    return suited


def _has(dataset: ImageDataset, need: str) -> bool:
    has = {"labels": dataset.classes, "masks": dataset.mask_classes, "objects": dataset.object_classes}
    return has[need] is not None


def _settings(
    protocol: str,
    config: DictConfig,
    data: DictConfig,
    options: evaluation.EvalConfig,
    datasets: Mapping[str, ImageDataset],
) -> str:
    """A hash of the protocol's options, the images, their preparation, and the code."""
    depends: dict[str, Any] = {
        "options": dataclasses.asdict(getattr(options, protocol)),
        "precision": config.precision,
        "data": OmegaConf.to_container(data, resolve=True),
        "images": [dataset.fingerprint() for dataset in datasets.values()],
        "code": code_digest((*EVALUATED_BY, "zoo")),
    }
    text = json.dumps([protocol, depends], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder(plan: Plan, entry: Published) -> Path:
    return plan.out / entry.name


def _done(folder: Path) -> dict[str, dict[str, str]]:
    """Settings to the file of the result and the SHA-256 of the checkpoint."""
    return read_json(folder / DONE) if (folder / DONE).is_file() else {}


def _finished(plan: Plan, entry: Published, protocol: str) -> bool:
    """Whether a result is there, of these settings and this checkpoint (of the last one where the file has gone)."""
    folder = _folder(plan, entry)
    record = _done(folder).get(plan.settings[protocol])
    if record is None or not (folder / record["file"]).is_file():
        return False
    path = zoo_path(entry)
    return not path.is_file() or record["sha256"] == sha256(path)


def _run(plan: Plan, entry: Published, protocol: str, console: Console) -> None:
    folder = _folder(plan, entry)
    digest = sha256(zoo_file(entry.name, console))
    evaluate_one(protocol, [override_of("zoo", entry.name), *plan.overrides, override_of("out", folder)], console)
    results = [path for path in folder.glob("*.json") if path.name != DONE]
    written = max((p for p in results if _is_of(read_json(p), protocol, plan.data)), key=lambda p: p.stat().st_mtime_ns)
    done = {key: record for key, record in _done(folder).items() if record["file"] != written.name}
    write_json(folder / DONE, {**done, plan.settings[protocol]: {"file": written.name, "sha256": digest}})


def _is_of(result: Mapping[str, Any], protocol: str, data: str) -> bool:
    return result["protocol"] == protocol and result["data"] == data


def _table(plan: Plan, failed: Mapping[tuple[str, str], str]) -> ZooTable:
    """All finished results of the entries, those of earlier commands with the same ``out`` too."""
    values: dict[str, dict[Column, float]] = {}
    made: dict[Column, set[str]] = {}
    for entry in plan.entries:
        folder = _folder(plan, entry)
        for settings, record in _done(folder).items():
            if not (folder / record["file"]).is_file():
                continue
            result = read_json(folder / record["file"])
            column = Column(*(result[key] for key in ("protocol", "variant", "data", "metric")))
            values.setdefault(entry.name, {})[column] = float(result["metrics"][column.metric])
            made.setdefault(column, set()).add(settings)
    notes = [
        f"not comparable: {column.title} was measured with different options, images or versions of the code"
        for column, settings in made.items()
        if len(settings) > 1
    ]
    return ZooTable(plan.entries, values, failed, plan.left_out, notes)


def _write(table: ZooTable, plan: Plan, arguments: Sequence[str], console: Console) -> None:
    stem = plan.out / "zoo"
    command = " ".join(["ssl-toolkit zoo evaluate", *arguments])
    write_json(stem.with_suffix(".json"), {"command": command, **as_dict(table)})
    write_text(stem.with_suffix(".md"), markdown(table))
    write_text(stem.with_suffix(".csv"), as_csv(table))
    console.print()
    console.print(terminal(table))
    console.print(f"written  {stem}.json, .md and .csv", highlight=False, markup=False, soft_wrap=True)
