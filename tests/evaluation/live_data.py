"""Images to train on, features of the others, and a command that is stopped in the middle of its training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.base import Features
from ssl_toolkit.evaluation import EvalData, Preparation, Source, extract
from ssl_toolkit.evaluation.crops import CropConfig
from tests.evaluation.fakes import COLOURS, CPU, ArrayDataset
from tests.helpers import TinyBackbone

PREPARATION = Preparation([0.5] * 3, [0.25] * 3, 16, 16, batch_size=5)
WHOLE = CropConfig(scale=[0.9, 1.0])

STOPPED = """
import os, signal, sys
from ssl_toolkit.cli import main
from ssl_toolkit.evaluation import live

count, original = 0, live.sum_gradients

def stopping(network):
    global count
    count += 1
    if count == {step}:
        os.kill(os.getpid(), signal.SIGINT)
    original(network)

live.sum_gradients = stopping
sys.exit(main({argv!r}))
"""


class ColourNet(Backbone):
    """A convolution of stride 8, and a norm."""

    def __init__(self, features: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = TinyBackbone().config
        self.num_features, self.stage_channels = features, (features,)
        self.stem = nn.Conv2d(3, features, 8, stride=8, bias=False)
        self.bn = nn.BatchNorm2d(features)

    def forward(self, images: Tensor) -> Features:
        maps = torch.tanh(self.bn(self.stem(images)))
        return Features(maps, maps.mean((2, 3)))


def one_colour(count: int, split: str, shuffled: bool = False) -> ArrayDataset:
    """Images of one of three colours with some noise, which is the label, unless labels are shuffled."""
    rng = np.random.default_rng([count, ord(split[1])])
    labels = np.arange(count) % 3
    noise = rng.integers(-9, 9, (count, 16, 16, 3))
    images = (COLOURS[labels][:, None, None].astype(int) + noise).clip(0, 255).astype(np.uint8)
    return ArrayDataset(images, (rng.permutation(labels) if shuffled else labels).tolist(), split=split)


def live_data(
    backbone: Backbone, shuffled: bool = False, state: Path | None = None, train: ArrayDataset | None = None
) -> EvalData:
    """48 training images and 24 of each other split."""
    datasets = {split: one_colour(24, split, shuffled) for split in ("val", "test")}
    datasets["train"] = train or one_colour(48, "train", shuffled)
    banks = {split: extract(backbone, datasets[split], PREPARATION, device=CPU) for split in ("val", "test")}
    source = Source(backbone, {}, "made up")
    return EvalData(source, datasets, banks, PREPARATION, CPU, torch.float32, "made up", state)


def run_stopped(argv: Sequence[str], step: int) -> subprocess.CompletedProcess[str]:
    """``ssl-toolkit`` with ``argv`` in a process that gets SIGINT in the middle of a training step, counted from 1."""
    script = STOPPED.format(step=step, argv=list(argv))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
