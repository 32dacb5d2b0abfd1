"""The backbone of a run in a file of its own."""

from __future__ import annotations

from pathlib import Path

from ssl_toolkit.backbones import create_backbone, save_backbone
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.training.checkpoints import LAST, OURS, checkpoint_names, checkpoint_path, read_checkpoint
from ssl_toolkit.training.run import WEIGHTS, read_run_config

IN_CHECKPOINT = "method.backbone."


def export(run: Path, checkpoint: str = LAST, out: Path | None = None) -> Path:
    """Write the backbone in a checkpoint of a run, finished or not, as safetensors.

    Neither the data nor the rest of the method is needed.

    Args:
        checkpoint: ``last``, ``best`` or ``epoch-0010``.
        out: the file to write; ``backbone-last.safetensors`` in the run folder by default.

    Returns:
        The file.

    Raises:
        UserError: no such run or checkpoint, a damaged one, or a file that cannot be written.
    """
    read_run_config(run)
    names = checkpoint_names(run)
    if not names:
        raise UserError(f"run={run} has no checkpoint yet")
    if checkpoint not in names:
        raise unknown("checkpoint", checkpoint, names)
    target = out or run / f"backbone-{checkpoint}.safetensors"
    if target.suffix != ".safetensors":
        raise UserError(f"--out {target}: name a .safetensors file")
    if target.resolve() == (run / WEIGHTS).resolve():
        raise UserError(f"--out {target} is what marks a run as finished; choose another name")
    path = checkpoint_path(run, checkpoint)
    stored = read_checkpoint(path)
    about = stored[OURS]
    backbone = create_backbone(about["config"]["backbone"])
    weights = {k.removeprefix(IN_CHECKPOINT): v for k, v in stored["state_dict"].items() if k.startswith(IN_CHECKPOINT)}
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {backbone.config.name}: {' '.join(str(error).split())}") from error
    save_backbone(target, backbone, about["preprocessing"], {"step": str(stored["global_step"])})
    return target
