"""Where an evaluated backbone comes from: a run folder, an exported file, or nowhere (the untrained baseline)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ssl_toolkit.backbones import Backbone, BackboneConfig, create_backbone
from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import Preparation, calibrate_batchnorm
from ssl_toolkit.files import sha256
from ssl_toolkit.hardware import pick_device
from ssl_toolkit.registry import typed
from ssl_toolkit.zoo.importers import load_checkpoint

WEIGHTS = "backbone.safetensors"
IN_CHECKPOINT = "method.backbone."

LocalVectors = Callable[[Tensor], Tensor]
"""Maps ``(B, C, H, W)`` to a vector of each cell, ``(B, H * W, D)``."""


@dataclass(frozen=True)
class Source:
    """What is evaluated.

    Attributes:
        preprocessing: ``mean`` and ``std`` that the backbone was trained with; without them the data's.
        name: for tables.
        checkpoint_path, checkpoint_sha256: of its weights, None for an untrained backbone.
        load_local: reads what made the vectors by which training matched cells, a `UserError` where there is none; None
            where nothing but a backbone is known.
    """

    backbone: Backbone
    preprocessing: Mapping[str, Any]
    name: str
    checkpoint_path: str | None = None
    checkpoint_sha256: str | None = None
    load_local: Callable[[], LocalVectors] | None = None

    def local_vectors(self) -> LocalVectors:
        """What makes the vectors by which training matched cells.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        if self.load_local is None:
            raise UserError(f"{self.name} is a backbone alone; a run=FOLDER has a local projector too")
        return self.load_local()

    def weights_digest(self) -> str:
        """A hash of the backbone's weights and statistics, whichever file they came from."""
        digest = hashlib.sha256()
        for name, value in self.backbone.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def file_source(path: Path, expect: BackboneConfig | None = None, name: str | None = None) -> Source:
    """The backbone of a checkpoint: of a run of this toolkit, or in any format that `load_checkpoint` knows.

    ``expect`` is needed where neither the file nor the shapes of its weights say what it is.
    """
    if path.suffix == ".ckpt" and (path.parent.parent / "config.yaml").is_file():
        return training_source(path, expect)
    found = load_checkpoint(path, arch=expect)
    return Source(found.backbone, found.preprocessing, name or path.stem, str(path), sha256(path))


def training_source(path: Path, expect: BackboneConfig | None = None) -> Source:
    """The backbone inside a training checkpoint (``runs/NAME/checkpoints/last.ckpt``), finished or not.

    What it is and how images are normalised is read from the run's ``config.yaml``.

    Raises:
        UserError: no such file, not a checkpoint of this toolkit, not in a run folder, or another architecture.
    """
    config_path = path.parent.parent / "config.yaml"
    if not path.is_file():
        raise UserError(f"checkpoint={path} does not exist")
    if not config_path.is_file():
        raise UserError(f"checkpoint={path} lies in no run folder: {config_path} is missing; give exported weights")
    config = OmegaConf.load(config_path)
    backbone = typed(BackboneConfig, config.backbone, "backbone")
    if expect is not None and expect.name != backbone.name:
        raise UserError(f"checkpoint={path} holds {backbone.name}, not {expect.name}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        raise UserError(f"checkpoint={path} is not a training checkpoint ({str(error).splitlines()[0]})") from error
    network = create_backbone(backbone)
    weights = {k.removeprefix(IN_CHECKPOINT): v for k, v in stored.items() if k.startswith(IN_CHECKPOINT)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint={path} does not fit {backbone.name}: {' '.join(str(error).split())}") from error
    stats = {"mean": list(config.data.mean), "std": list(config.data.std)}
    return Source(network, stats, path.parent.parent.name, str(path), sha256(path))


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
    options = backbone if isinstance(backbone, BackboneConfig) else typed(BackboneConfig, backbone, "backbone")
    options.in_channels = dataset.in_channels
    torch.manual_seed(seed)
    network = create_backbone(options)
    stats = dataset.config
    preparation = Preparation(stats.mean, stats.std, stats.eval_resize, stats.eval_size)
    calibrate_batchnorm(network, dataset, preparation, device=pick_device("auto"), seed=seed)
    return Source(network, {"mean": list(stats.mean), "std": list(stats.std)}, "untrained")
