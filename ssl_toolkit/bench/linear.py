"""``bench linear``: seven learning rates of the linear probe against one, and the fast forms on cached features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_toolkit.backbones import BackboneConfig, create_backbone
from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Suite
from ssl_toolkit.evaluation.heads import Standardizer, head_optimizer
from ssl_toolkit.evaluation.linear import LinearConfig, train_linear
from ssl_toolkit.evaluation.linear_augmented import Probe, frozen_features
from ssl_toolkit.evaluation.logistic import logistic_path
from ssl_toolkit.evaluation.reading import Preparation
from ssl_toolkit.hardware import pick_precision

LRS = [30.0, 10.0, 1.0, 0.3, 0.1, 0.03, 0.01]
"""The paper's (VICRegL, appendix)."""

TOLERANCE = 1e-4
"""scikit-learn's, for both of those that are compared with it."""


@dataclass
class LinearBenchConfig(BenchConfig):
    """Options of ``bench linear``.

    Attributes:
        backbone: the group of that name, frozen.
        batch_size: images a step; the protocol's is 256.
        image_size: side in pixels.
        classes: of the heads on a backbone.
        precision: of the backbone: ``auto``, ``bf16`` or ``fp32``.
        cached: whether to time the fast forms, too.
        cached_images, cached_features, cached_classes: of the features that these are trained on.
        cached_epochs: passes of SGD over them.
    """

    rounds: int = 5
    budget: float = 120.0
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="resnet50"))
    batch_size: int = 256
    image_size: int = 224
    classes: int = 1000
    precision: str = "auto"
    cached: bool = True
    cached_images: int = 20000
    cached_features: int = 512
    cached_classes: int = 10
    cached_epochs: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "classes", "cached_features", "cached_classes", "cached_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.image_size < 8:
            raise ValueError(f"image_size must be at least 8, not {self.image_size}")
        if self.cached_images < self.cached_classes:
            raise ValueError(f"cached_images must be at least {self.cached_classes}, one for each class")


class ProbeStep:
    """A step of ``linear_augmented`` on images that are on the device already.

    Args:
        lrs: a head for each.
    """

    def __init__(self, options: LinearBenchConfig, lrs: list[float], batch: tuple[Tensor, Tensor], dtype: torch.dtype):
        torch.manual_seed(options.seed)
        images, self.labels = batch
        self.images, self.dtype, self.device = images, dtype, images.device
        self.backbone = create_backbone(options.backbone).to(self.device).eval()
        channels = options.backbone.in_channels
        self.preparation = Preparation([0.5] * channels, [0.25] * channels, options.image_size, options.image_size)
        self.probe = Probe(len(lrs), self.backbone.num_features, options.classes, norm=False).to(self.device)
        self.optimizer = head_optimizer(self.probe.heads, "sgd", lrs, 1e-6)

    def __call__(self, _: Any = None) -> None:
        """Normalisation, the frozen backbone, all heads forward and backward, update."""
        images = self.preparation.normalise(self.images, self.device)
        features = frozen_features(self.backbone, images, self.dtype)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.probe.loss(features, self.labels, len(features)))
        self.optimizer.step()

    def resident(self) -> int:
        """Bytes of weights, heads and their momenta."""
        held = [*self.backbone.parameters(), *self.backbone.buffers(), *self.probe.parameters()]
        return sum(t.numel() * t.element_size() for t in [*held, *self.probe.parameters()])


def _on_images(options: LinearBenchConfig, device: torch.device, dtype: torch.dtype) -> Comparison:
    generator = torch.Generator().manual_seed(options.seed)
    size, count = options.image_size, options.batch_size
    channels = options.backbone.in_channels
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, options.classes, (count,), generator=generator)
    batch = images.to(device), labels.to(device)
    steps = {f"{len(lrs)} lr{'s' * (len(lrs) > 1)}": ProbeStep(options, lrs, batch, dtype) for lrs in ([0.3], LRS)}
    contenders = [Contender(name, step, resident=step.resident) for name, step in steps.items()]
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    return Comparison(
        f"Probe on crops: a step of {options.backbone.name}, {size} px, batch {count}, {options.classes} classes, "
        f"{precision}",
        contenders,
        items=count,
        memory=True,
        notes=["demand: 7 lrs at most 1.2 times one. Reading images, which both would wait for, is left out."],
    )


def _features(options: LinearBenchConfig) -> tuple[Tensor, Tensor]:
    """Classes that overlap: a mean of its own for each, and noise."""
    generator = torch.Generator().manual_seed(options.seed)
    labels = torch.arange(options.cached_images) % options.cached_classes
    means = torch.randn(options.cached_classes, options.cached_features, generator=generator) / 8
    noise = torch.randn(options.cached_images, options.cached_features, generator=generator)
    return means[labels] + noise, labels


def _sgd(options: LinearBenchConfig, device: torch.device) -> Comparison:
    features, labels = _features(options)
    norm, quiet = Standardizer.fit(features), Console(quiet=True)
    given = LinearConfig(lrs=LRS, epochs=options.cached_epochs)

    def together(_: Any) -> None:
        train_linear(features, labels, options.cached_classes, given, norm, device, quiet)

    def apart(_: Any) -> None:
        for lr in LRS:
            train_linear(features, labels, options.cached_classes, replace(given, lrs=[lr]), norm, device, quiet)

    contenders = [Contender("side by side", together), Contender("one by one", apart)]
    return Comparison(f"SGD on cached features: 7 lrs, {_sizes(options)}, {options.cached_epochs} epochs", contenders)


def _lbfgs(options: LinearBenchConfig, device: torch.device) -> Comparison:
    features, labels = _features(options)
    x: NDArray[np.float32] = features.numpy()
    classes = options.cached_classes

    def ours(_: Any) -> None:
        logistic_path(features, labels, classes, [1.0], max_iter=1000, tolerance=TOLERANCE, device=device)

    def theirs(_: Any) -> None:
        LogisticRegression(C=1.0, tol=TOLERANCE, max_iter=1000).fit(x, labels.numpy())

    contenders = [Contender("ours", ours), Contender("scikit-learn", theirs)]
    notes = [f"until the gradient is below {TOLERANCE:g}; scikit-learn is on the CPU whatever the device is."]
    return Comparison(f"L-BFGS on cached features: c 1, {_sizes(options)}", contenders, notes=notes)


def _sizes(options: LinearBenchConfig) -> str:
    return f"{options.cached_images} x {options.cached_features}, {options.cached_classes} classes"


@SUITES.register("linear", LinearBenchConfig)
def linear(options: LinearBenchConfig, device: torch.device) -> Suite:
    """A step of the probe on a frozen backbone with seven heads and with one; the probes on cached features."""
    dtype = pick_precision(options.precision, device)
    with torch.device("meta"):
        create_backbone(options.backbone)  # a name that nobody knows stops here

    def comparisons() -> Iterator[Comparison]:
        yield _on_images(options, device, dtype)
        if options.cached:
            yield _sgd(options, device)
            yield _lbfgs(options, device)

    facts = [
        ("probe", "normalisation of uint8 images, frozen backbone, heads forward and backward, update"),
        ("lrs", ", ".join(f"{lr:g}" for lr in LRS)),
        options.turns(),
    ]
    return Suite(facts, comparisons())
