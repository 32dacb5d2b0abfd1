"""Small stand-ins that several tests share."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.config import override_of
from ssl_toolkit.views.batch import View, ViewBatch

_HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not _HAS_DALI, reason="DALI is not installed")


class TinyBackbone(Backbone):
    """One convolution of stride 8 with BatchNorm: (B, 3, S, S) to (B, features, S / 8, S / 8)."""

    def __init__(self, features: int = 6, norm: str = "batch") -> None:
        super().__init__()
        self.config = BackboneConfig(name="tiny-test")
        self.num_features = features
        self.stage_channels = (features,)
        self.norm = norm
        self.net = nn.Sequential(nn.Conv2d(3, features, 8, stride=8), nn.BatchNorm2d(features), nn.ReLU())

    def forward(self, images: Tensor) -> Features:
        maps = self.net(images)
        return Features(maps, maps.mean(dim=(2, 3)))


def random_batch(
    batch: int = 4,
    sizes: tuple[int, ...] = (32, 32),
    num_large: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ViewBatch:
    """Normalised random views with random boxes in images of 80 x 120 pixels, half of them flipped."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for size in sizes:
        corner = torch.rand(batch, 2, generator=generator) * 40
        box = torch.cat((corner, corner + 10 + torch.rand(batch, 2, generator=generator) * 30), dim=1)
        image = torch.randn(batch, 3, size, size, generator=generator).to(dtype)
        views.append(View(image, box, torch.rand(batch, generator=generator) < 0.5))
    return ViewBatch(tuple(views), num_large, torch.tensor([[80.0, 120.0]]).expand(batch, 2), torch.arange(batch))


def quick_overrides(runs: Path, method: str = "vicregl") -> list[str]:
    """A pretraining of seconds: 64 digit scenes, 8 steps, a small backbone and heads."""
    return [
        override_of("runs_dir", runs),
        f"experiment=digits_{method}",
        "data.train_size=64",
        "data.val_size=32",
        "data.test_size=32",
        "trainer.epochs=2",
        "trainer.batch_size=16",
        "trainer.workers=0",
        "trainer.precision=fp32",
    ]


def heed_interrupts() -> None:
    """``preexec_fn`` of a process that is to stop on SIGINT, which jobs that a shell runs in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
