"""The backbone in a checkpoint of a run, to be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.checkpoints import LAST, OURS
from ssl_toolkit.training.restore import stored_checkpoint

IN_CHECKPOINT = "method.backbone."


def checkpoint_backbone(run: Path, checkpoint: str = LAST) -> tuple[Backbone, dict[str, Any], dict[str, str]]:
    """The backbone in a checkpoint of a run, finished or not, in evaluation mode.

    Neither the data nor the rest of the method is needed.

    Args:
        checkpoint: ``last``, ``best`` or ``epoch-0010``.

    Returns:
        The backbone, its preprocessing, and what else is to be kept beside its weights.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    path, stored = stored_checkpoint(run, checkpoint)
    about = stored[OURS]
    backbone = create_backbone(about["config"]["backbone"])
    weights = {k.removeprefix(IN_CHECKPOINT): v for k, v in stored["state_dict"].items() if k.startswith(IN_CHECKPOINT)}
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {backbone.config.name}: {' '.join(str(error).split())}") from error
    return backbone.eval(), about["preprocessing"], {"step": str(stored["global_step"])}
