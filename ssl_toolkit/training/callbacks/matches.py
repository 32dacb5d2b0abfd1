"""Match overlays while a run trains: how the local features come to find their places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from ssl_toolkit.errors import UserError


class MatchPictures(pl.Callback):
    """Saves the matches of the same few views every few epochs, in ``examples/matches-step-000480.npz``.

    Process 0 does it while the others wait for it at the next step. The network and random generators are left as
    they were. A disk that is full costs the pictures, not the run.

    Args:
        run: the run's folder.
        every: steps between them.
        save: writes the matches of the network as it is to a path.
    """

    def __init__(self, run: Path, every: int, save: Callable[[Path], None], console: Console) -> None:
        self.run, self.every, self.save, self.console = run, every, save, console

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time; the end of the run has a file of its own."""
        step = trainer.global_step
        if not trainer.is_global_zero or step % self.every or step == trainer.max_steps:
            return
        try:
            self.save(self.run / "examples" / f"matches-step-{step:06d}.npz")
        except UserError as error:
            self.console.print(f"matches: {error}", highlight=False, markup=False, soft_wrap=True)
