"""``ssl-toolkit export``: a backbone in the formats of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import read_json
from ssl_toolkit.loading import open_source, preprocess_of, run_of
from ssl_toolkit.registry import typed
from ssl_toolkit.zoo import published
from ssl_toolkit.zoo.exporters import Facts, Subject, export_backbone, format_of

WEIGHTS = "backbone.safetensors"
LICENSES = {"CC-BY-NC": "cc-by-nc-4.0", "CC-BY-NC 4.0": "cc-by-nc-4.0", "Apache-2.0": "apache-2.0", "MIT": "mit"}
"""Licences of the zoo under the hub's identifiers."""


@dataclass
class ExportConfig:
    """The keys of ``configs/export.yaml``, but for ``backbone``.

    Attributes:
        run, checkpoint, zoo: the backbone.
        format: a key of `ssl_toolkit.zoo.exporters.FORMATS`.
        out: None is beside the weights.
        size: side in pixels of the images of a graph.
        license: for the model card.
    """

    run: str | None = None
    checkpoint: str | None = None
    zoo: str | None = None
    format: str = "safetensors"
    out: str | None = None
    size: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be 1 pixel or more, not {self.size}")


def export(words: Sequence[str], checkpoint: str | None, out: str | None, console: Console) -> int:
    """``ssl-toolkit export RUN | run=... | checkpoint=... | zoo=... [format=...]``.

    Args:
        words: a run folder (its ``checkpoint`` is exported, finished or not), and ``key=value``.
        checkpoint: ``last`` by default, ``best`` or ``epoch-0010``; of a run folder alone.
    """
    runs = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word] + ([] if out is None else [override_of("out", out)])
    config = compose_config("export", overrides)
    options = typed(ExportConfig, {str(k): v for k, v in config.items() if k != "backbone"}, "export")
    _check(options, runs, checkpoint)
    subject, folder = (
        _of_checkpoint(Path(runs[0]), checkpoint or "last", options) if runs else _of_source(config, options)
    )
    target = Path(options.out).expanduser() if options.out else folder
    if target.name == WEIGHTS and (target.parent / "config.yaml").is_file():
        raise UserError(f"--out {target} is what marks a run as finished; choose another name")
    lines = export_backbone(subject, options.format, target)
    console.print(f"weights  {target}", highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        console.print(f"use      {line}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _check(options: ExportConfig, runs: Sequence[str], checkpoint: str | None) -> None:
    """Refuse before any work what does not go together."""
    chosen = format_of(options.format)
    named = [key for key in ("run", "checkpoint", "zoo") if getattr(options, key) is not None]
    if len(runs) > 1:
        raise UserError(f"name one run, not {len(runs)}: {' '.join(runs)}")
    if runs and named:
        raise UserError(f"give the folder {runs[0]} or {named[0]}=, not both")
    if checkpoint is not None and not runs:
        raise UserError(
            f"--checkpoint {checkpoint} is of a run folder: ssl-toolkit export RUN --checkpoint {checkpoint}"
        )
    if not runs and not named:
        raise UserError("say what to export: a run folder, checkpoint=FILE or zoo=NAME")
    if options.size is not None and not chosen.sized:
        raise UserError(f"size= is for onnx and torch_export; format={options.format} takes images of any size")
    if options.license is not None and options.format != "huggingface":
        raise UserError(f"license= is for the model card of format=huggingface, not for {options.format}")


def _of_checkpoint(run: Path, checkpoint: str, options: ExportConfig) -> tuple[Subject, Path]:
    backbone, stored, extra = training.checkpoint_backbone(run, checkpoint)
    preprocess = preprocess_of(stored, backbone, options.size)
    subject = Subject(backbone, preprocess, run.resolve().name, extra, _facts(run, options))
    return subject, _beside(run / f"backbone-{checkpoint}", options.format)


def _of_source(config: DictConfig, options: ExportConfig) -> tuple[Subject, Path]:
    source, preprocess = open_source(config, options.size)
    facts = _facts(run_of(source), options) if options.zoo is None else _published_facts(options.zoo, options)
    backbone = source.backbone.cpu().eval()
    name = source.name.replace("/", "_")
    subject = Subject(backbone, preprocess, name, {}, facts, source.checkpoint_sha256)
    if options.zoo is not None or source.checkpoint_path is None:
        return subject, _beside(Path(name), options.format)
    path = Path(source.checkpoint_path)
    stem = f"{path.stem}-exported" if options.format == "safetensors" else path.stem
    return subject, _beside(path.with_name(stem), options.format)


def _beside(stem: Path, format_: str) -> Path:
    """The default file: the format is part of its name where the suffix does not tell it."""
    suffixes = format_of(format_).suffixes
    middle = "" if format_ in ("safetensors", "onnx", "torch_export") else f"-{format_}"
    return stem.with_name(f"{stem.name}{middle}{suffixes[0] if suffixes else ''}")


def _facts(run: Path | None, options: ExportConfig) -> Facts:
    """What a run folder tells of its backbone; nothing where there is none."""
    if run is None:
        return Facts(license=options.license)
    config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    found = [read_json(path) for path in sorted((run / "results").glob("*.json"))]
    results = tuple(
        each for each in found if isinstance(each, dict) and {"protocol", "data", "metric", "metrics"} <= each.keys()
    )
    return Facts(options.license, config, results)


def _published_facts(name: str, options: ExportConfig) -> Facts:
    entry = published(name)
    licence = options.license or LICENSES.get(entry.license)
    rows = [("method", f"[{entry.method}]({entry.paper})"), ("data", entry.data), ("source", entry.source)]
    rows += [("licence", entry.license)]
    rows += [
        (f"{measure} ({table})", f"{value}") for table, row in entry.numbers.items() for measure, value in row.items()
    ]
    return Facts(licence, published=tuple(rows))
