"""A linear probe that learns beside the run. Labels reach it, never the backbone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

LEARNING_RATE = 1e-3
"""Of Adam, on features with mean 0 and variance 1 in every dimension."""


class LinearProbe(pl.Callback):
    """A linear classifier on the detached representations of the training views, one step for each of the run's.

    Features are normalised by a BatchNorm without weights, the classifier starts at 0: nothing is random. On several
    processes rank 0 trains it, on its own images. Its state is part of the checkpoint.

    Args:
        features: dimensions of the representations.
        classes: of the labels.
    """

    def __init__(self, features: int, classes: int) -> None:
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.layer: nn.Linear = skip_init(nn.Linear, features, classes)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=LEARNING_RATE)
        self._right = torch.zeros((), dtype=torch.int64)
        self._seen = 0
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Go to the device of the run, and take up what a checkpoint held."""
        self.norm.to(module.device)
        self.layer.to(module.device)
        self._right = self._right.to(module.device)
        if self._loaded is not None:
            self.norm.load_state_dict(self._loaded["norm"])
            self.layer.load_state_dict(self._loaded["layer"])
            self.optimizer.load_state_dict(self._loaded["optimizer"])
            self._right.fill_(self._loaded["right"])
            self._seen = self._loaded["seen"]
            self._loaded = None

    @torch.enable_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what the probe gets right, then let it learn from it."""
        if outputs["pooled"] is None or not trainer.is_global_zero:
            return
        self.norm.train()
        logits = self.layer(self.norm(outputs["pooled"].detach().float()))
        self._right += (logits.detach().argmax(dim=1) == batch.label).sum()
        self._seen += len(logits)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(logits, batch.label))
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Scores ``(N, classes)`` of representations ``(N, D)``."""
        self.norm.eval()
        scores: Tensor = self.layer(self.norm(features.float()))
        return scores

    def columns(self) -> dict[str, float]:
        """Percent of training views that were right since the last call, each before the probe learned from it."""
        if not self._seen:
            return {}
        found = {"linear_view_top1": 100 * float(self._right) / self._seen}
        self._right.zero_()
        self._seen = 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and counts."""
        return {
            "norm": self.norm.state_dict(),
            "layer": self.layer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "right": int(self._right),
            "seen": self._seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts, when the probe is on its device."""
        self._loaded = state_dict
