"""A batch without a finite loss, as it is stored for a replay."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_toolkit.criteria.distributed import rank
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path
from ssl_toolkit.views.batch import View, ViewBatch

FORMAT = 1


@dataclass(frozen=True)
class Failure:
    """A step without a finite loss.

    Attributes:
        step: its number, from 1; steps before it are ``step - 1``.
        reason: as it was said.
        rank: of the process whose images these are.
        batch: as it left the loader.
        weights: of the method before the step, which are those after it.
        about: of the run: ``seed``, ``precision`` (``bf16`` or ``fp32``), ``mean``, ``std``, ``accumulate``.
    """

    step: int
    reason: str
    rank: int
    batch: ViewBatch
    weights: dict[str, Tensor]
    about: dict[str, Any]


def failure_path(run: Path, step: int, process: int) -> Path:
    """``failures/step-000123.pt``, of other processes ``failures/step-000123-rank1.pt``."""
    return run / "failures" / (f"step-{step:06d}.pt" if process == 0 else f"step-{step:06d}-rank{process}.pt")


def save_failure(
    run: Path, step: int, reason: str, method: nn.Module, batch: ViewBatch, about: Mapping[str, Any]
) -> Path:
    """Store this process's images of a failed step; process 0 stores the weights too.

    Raises:
        UserError: the file cannot be written.
    """
    path = failure_path(run, step, rank())
    views = [{"image": v.image.cpu(), "box": v.box.cpu(), "flip": v.flip.cpu()} for v in batch.views]
    rest = {key: getattr(batch, key).cpu() for key in ("image_size", "index")}
    stored = {
        "format": FORMAT,
        "step": step,
        "reason": reason,
        "rank": rank(),
        "batch": {"views": views, "num_large": batch.num_large, **rest},
        "weights": {k: v.cpu() for k, v in method.state_dict().items()} if rank() == 0 else {},
        "about": dict(about),
    }
    with atomic_path(path) as temporary:
        torch.save(stored, temporary)
    return path


def read_failure(path: Path) -> Failure:
    """A stored step; the weights come from the file of process 0 beside it.

    Raises:
        UserError: no such file, or not one of these.
    """
    stored = _load(path)
    if not stored["weights"]:
        stored["weights"] = _load(failure_path(path.parent.parent, stored["step"], 0))["weights"]
    batch = stored["batch"]
    views = tuple(View(view["image"], view["box"], view["flip"]) for view in batch["views"])
    return Failure(
        stored["step"],
        stored["reason"],
        stored["rank"],
        ViewBatch(views, batch["num_large"], batch["image_size"], batch["index"]),
        stored["weights"],
        stored["about"],
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path}: failed steps lie in the folder failures of a run")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as a failed step of a run (failures/step-*.pt)") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or "batch" not in stored:
        raise UserError(f"{path} is not a failed step of a run (failures/step-*.pt)")
    return stored
