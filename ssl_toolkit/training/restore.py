"""What a run has trained, as it was: the whole method, not its backbone alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.training.checkpoints import LAST, OURS, checkpoint_names, checkpoint_path, read_checkpoint
from ssl_toolkit.training.run import read_run_config

IN_CHECKPOINT = "method."


def load_method(run: Path, checkpoint: str = LAST) -> Method:
    """The method of a run with the weights of one of its checkpoints, in evaluation mode on the CPU.

    It is built from the config that the checkpoint remembers; the data is not needed, and random generators are left
    as they were found. Heads are those of the training: `Method.local_vectors` gives the embeddings that cells were
    matched by.

    Args:
        run: the folder, of a run that is finished or not.
        checkpoint: ``last``, ``best`` or ``epoch-0010``.

    Raises:
        UserError: no such run or checkpoint, a damaged one, or weights that do not fit its config.
    """
    path, stored = stored_checkpoint(run, checkpoint)
    config = stored[OURS]["config"]
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced
        method = METHODS.build(config["method"], backbone=create_backbone(config["backbone"]))
    weights = {
        key.removeprefix(IN_CHECKPOINT): value
        for key, value in stored["state_dict"].items()
        if key.startswith(IN_CHECKPOINT)
    }
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        name = config["method"]["name"]
        raise UserError(f"{path} does not fit {name} on {config['backbone']['name']}: {_line(error)}") from error
    return method.eval()


def stored_checkpoint(run: Path, checkpoint: str) -> tuple[Path, dict[str, Any]]:
    """The file of a run's checkpoint, and what it holds (`read_checkpoint`).

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    read_run_config(run)
    names = checkpoint_names(run)
    if not names:
        raise UserError(f"run={run} has no checkpoint yet")
    if checkpoint not in names:
        raise unknown("checkpoint", checkpoint, names)
    path = checkpoint_path(run, checkpoint)
    return path, read_checkpoint(path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
