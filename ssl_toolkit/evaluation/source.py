"""Where an evaluated backbone comes from: a run folder, an exported file, or nowhere (the untrained baseline)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ssl_toolkit.backbones import BackboneConfig, create_backbone, load_backbone
from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import Preparation, calibrate_batchnorm
from ssl_toolkit.evaluation.suite import Source
from ssl_toolkit.hardware import pick_device

WEIGHTS = "backbone.safetensors"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_source(path: Path, expect: BackboneConfig | None = None, name: str | None = None) -> Source:
    """The backbone of an exported ``.safetensors``; ``expect`` is needed where the file does not say what it is."""
    backbone, preprocessing = load_backbone(path, expect)
    return Source(backbone, preprocessing, name or path.stem, str(path), sha256(path))


def run_source(run: Path, expect: BackboneConfig | None = None) -> Source:
    """The backbone of a finished run.

    Raises:
        UserError: no such folder, or the run has not finished.
    """
    if not run.is_dir():
        raise UserError(f"run={run} does not exist")
    path = run / WEIGHTS
    if not path.is_file():
        hint = (
            f"it has not finished; continue it with: ssl-toolkit pretrain run={run}"
            if (run / "checkpoints").is_dir()
            else "it is not a run folder"
        )
        raise UserError(f"run={run} has no {WEIGHTS}: {hint}")
    return file_source(path, expect, run.name)


def untrained_source(
    backbone: Mapping[str, Any] | DictConfig | BackboneConfig,
    data: Mapping[str, Any] | DictConfig,
    seed: int = 0,
) -> Source:
    """A freshly initialised backbone whose BatchNorm statistics are filled from training images: the baseline that any
    pretraining has to beat."""
    dataset = build_dataset(data, "train")
    options = BackboneConfig(**dict(backbone)) if not isinstance(backbone, BackboneConfig) else backbone  # type: ignore[arg-type]
    options.in_channels = dataset.in_channels
    torch.manual_seed(seed)
    network = create_backbone(options)
    stats = dataset.config
    preparation = Preparation(stats.mean, stats.std, stats.eval_resize, stats.eval_size)
    calibrate_batchnorm(network, dataset, preparation, device=pick_device("auto"), seed=seed)
    return Source(network, {"mean": list(stats.mean), "std": list(stats.std)}, "untrained")
