"""The callbacks of a run, put together from its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from rich.console import Console

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import Preparation
from ssl_toolkit.training.callbacks import (
    BestValue,
    Collapse,
    Failures,
    LinearProbe,
    MatchPictures,
    Measures,
    MetricsFile,
    Schedule,
    TensorBoardRows,
    TrainingBar,
    ValidationProbe,
    WandbRows,
)
from ssl_toolkit.training.examples import save_match_examples
from ssl_toolkit.training.parts import Parts


def schedule_of(parts: Parts) -> Schedule:
    """Which steps of a run are measured."""
    every = parts.monitor.knn_every
    return Schedule(parts.trainer.log_every, parts.steps_per_epoch, parts.total_steps, every)


def run_callbacks(parts: Parts, run: Path, console: Console) -> list[pl.Callback]:
    """What watches a run and writes of it, in the order in which it has to be called."""
    monitor, size = parts.monitor, parts.trainer.batch_size
    linear = _linear_probe(parts, console)
    validation = _validation_probe(parts, linear, console)
    schedule = schedule_of(parts)
    failures = Failures(run, _about(parts), console)
    probes = [probe for probe in (linear, validation) if probe is not None]
    measures = Measures(
        schedule,
        size,
        [failures.columns, *(probe.columns for probe in probes)],
        paused=lambda: 0.0 if validation is None else validation.seconds,
    )
    return [
        failures,
        *probes,
        BestValue(_best(parts, validation), schedule, validation),
        measures,
        MetricsFile(run / "metrics.csv", measures),
        *_loggers(parts, run, measures),
        *_match_pictures(parts, run, console),
        Collapse(
            run,
            measures,
            schedule,
            warmup=parts.warmup_steps,
            patience=monitor.patience,
            stop=monitor.stop_on_collapse,
            console=console,
        ),
        TrainingBar(size, parts.steps_per_epoch, str(parts.config.method.name), console, validation),
    ]


def _about(parts: Parts) -> dict[str, Any]:
    stats = parts.dataset.config
    return {
        "seed": int(parts.config.seed),
        "precision": "bf16" if parts.dtype == torch.bfloat16 else "fp32",
        "accumulate": parts.trainer.accumulate,
        "mean": list(stats.mean),
        "std": list(stats.std),
    }


def _say(console: Console, line: str) -> None:
    console.print(f"  [bold]probes[/bold]    {line}", highlight=False, soft_wrap=True)


def _linear_probe(parts: Parts, console: Console) -> LinearProbe | None:
    if parts.dataset.classes is None:
        if parts.monitor.linear or parts.monitor.knn_every is not None:
            _say(console, f"none: {parts.config.data.name} has no labels")
        return None
    if not parts.monitor.linear:
        return None
    return LinearProbe(parts.method.backbone.num_features, len(parts.dataset.classes))


def _validation_probe(parts: Parts, linear: LinearProbe | None, console: Console) -> ValidationProbe | None:
    if parts.dataset.classes is None or parts.monitor.knn_every is None:
        return None
    queries = _validation_images(parts, console)
    if queries is None:
        return None
    config = parts.dataset.config
    return ValidationProbe(
        parts.dataset,
        queries,
        parts.monitor.knn_images,
        Preparation(config.mean, config.std, config.eval_resize, config.eval_size, min(256, parts.batch_per_process)),
        schedule_of(parts),
        precision=parts.dtype,
        linear=linear,
        seed=int(parts.config.seed),
        console=console,
    )


def _validation_images(parts: Parts, console: Console) -> ImageDataset | None:
    """The validation split; None where it cannot be used, which is said."""
    try:
        queries = build_dataset(parts.config.data, "val")
    except UserError as error:
        _say(console, f"none on validation images: {error}")
        return None
    if queries.classes is None or not len(queries):
        _say(console, f"none on validation images: {parts.config.data.name} has no labelled ones")
        return None
    return queries


def _best(parts: Parts, validation: ValidationProbe | None) -> str:
    parts.monitor.check(parts.config.data.name, validation is not None)
    return parts.monitor.best or ("loss" if validation is None else "knn")


def _match_pictures(parts: Parts, run: Path, console: Console) -> list[pl.Callback]:
    if parts.monitor.matches_every is None or parts.views.num_large < 2:
        return []

    def save(path: Path) -> None:
        stats = parts.dataset.config
        normalize = Normalize(stats.mean, stats.std)
        save_match_examples(path, parts.method, parts.dataset, parts.views, normalize, seed=int(parts.config.seed))

    return [MatchPictures(run, parts.monitor.matches_every * parts.steps_per_epoch, save, console)]


def _loggers(parts: Parts, run: Path, measures: Measures) -> list[pl.Callback]:
    config: Any = OmegaConf.to_container(parts.config, resolve=True)
    made: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardRows(run, measures),
        "wandb": lambda: WandbRows(run, measures, parts.monitor.wandb, config),
    }
    return [made[name]() for name in parts.monitor.loggers]
