"""``bench step``: a training step of methods against each other, as `ssl-toolkit pretrain` runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ssl_toolkit.backbones import BackboneConfig, create_backbone, map_size
from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Suite
from ssl_toolkit.bench.inputs import IMAGE, random_boxes
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import pick_precision
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.views.batch import View, ViewBatch

PAPER = "+18%, +39%"
"""VICRegL over VICReg: 13 h and 15.7 GB to 11 h and 11.3 GB (VICRegL, Table 11: ResNet-50, batch 2048, 32 V100)."""


@dataclass
class StepConfig(BenchConfig):
    """Options of ``bench step``.

    Attributes:
        methods: names; the first is what the others are compared with.
        backbone, optimizer: the groups of that name, as in a pretraining.
        batch_size: images a step.
        image_size: side of the two views in pixels.
        precision: ``auto``, ``bf16`` or ``fp32``.
        channels_last: memory format of images and weights.
        head: widths of the global head, the same for every method; None takes each method's own.
    """

    rounds: int = 15
    budget: float = 120.0
    methods: list[str] = field(default_factory=lambda: ["vicreg", "vicregl"])
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="resnet50"))
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "lars"})
    batch_size: int = 32
    image_size: int = 224
    precision: str = "auto"
    channels_last: bool = True
    head: list[int] | None = field(default_factory=lambda: [2048, 2048, 2048])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, not {self.batch_size}")
        if self.image_size < 1:
            raise ValueError(f"image_size must be positive, not {self.image_size}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must be names, each once, not {list(self.methods)}")


def random_views(batch_size: int, size: int, seed: int) -> ViewBatch:
    """Two large uint8 views of noise, with random boxes and flips."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for _ in range(2):
        image = torch.randint(0, 256, (batch_size, 3, size, size), generator=generator, dtype=torch.uint8)
        flip = torch.rand(batch_size, generator=generator) < 0.5
        views.append(View(image, random_boxes(batch_size, 0.4, 1.0, generator).float(), flip))
    return ViewBatch(tuple(views), 2, torch.tensor([IMAGE]).expand(batch_size, 2), torch.arange(batch_size))


class Step:
    """One method, its optimizer and what a step does, as Lightning does it in `ssl_toolkit.training`."""

    def __init__(self, module: Pretraining, batch: ViewBatch, dtype: torch.dtype) -> None:
        self.module, self.batch, self.dtype = module, batch, dtype
        self.optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]

    def __call__(self, _: Any = None) -> None:
        """Forward, backward, update."""
        with torch.autocast(self.module.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss: Tensor = self.module.training_step(self.batch, 0)["loss"]
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    def resident(self) -> int:
        """Bytes held between steps: weights, buffers, gradients, optimizer state."""
        parameters = list(self.module.parameters())
        held = [*parameters, *self.module.buffers(), *(p.grad for p in parameters if p.grad is not None)]
        for state in self.optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def method_config(options: StepConfig, name: str) -> dict[str, Any]:
    """The section ``method`` of a pretraining with this method, and the head asked for."""
    config: Any = OmegaConf.to_container(compose_config("pretrain", [f"method={name}"]).method)
    if options.head is not None:
        config["expander" if "expander" in config else "projector"]["widths"] = list(options.head)
    METHODS.options(config)
    return config


def build(options: StepConfig, method_options: Mapping[str, Any], device: torch.device) -> Pretraining:
    """The module that Lightning would train."""
    torch.manual_seed(options.seed)
    method: Method = METHODS.build(method_options, backbone=create_backbone(options.backbone))
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    module = Pretraining(
        method,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        optimizer=options.optimizer,
        batch_size=options.batch_size,
        steps_per_epoch=1000,
        total_steps=100_000,
    )
    return module.to(device).train()


def check_sizes(options: StepConfig, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse sizes that a method cannot train on, without the memory of its weights."""
    OPTIMIZERS.options(options.optimizer)
    for name, method_options in methods.items():
        with torch.device("meta"):
            method = METHODS.build(method_options, backbone=create_backbone(options.backbone))
        maps = map_size(method.backbone, options.image_size)
        try:
            method.check([maps, maps], 2)
        except UserError as error:
            raise UserError(f"{name} at image_size={options.image_size}: {error}") from error


def _comparison(
    options: StepConfig, methods: Mapping[str, Mapping[str, Any]], device: torch.device, dtype: torch.dtype
) -> Iterator[Comparison]:
    batch = random_views(options.batch_size, options.image_size, options.seed).to(device)
    contenders = []
    for name, method_options in methods.items():
        step = Step(build(options, method_options, device), batch, dtype)
        contenders.append(Contender(name, step, resident=step.resident))
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    layout = ", channels_last" if options.channels_last else ""
    size = options.image_size
    title = f"Training step: {options.backbone.name}, 2x{size}, batch {options.batch_size}, {precision}{layout}"
    beside, notes = {}, []
    if options.methods[0] == "vicreg" and "vicregl" in options.methods:
        beside = {"vicregl": PAPER}
        notes = ["paper: time and memory that VICRegL adds to VICReg (Table 11: ResNet-50, batch 2048 on 32 V100)."]
    yield Comparison(title, contenders, percent=True, beside=beside, notes=notes)


@SUITES.register("step", StepConfig)
def step(options: StepConfig, device: torch.device) -> Suite:
    """Normalisation, forward, backward and optimizer step on random views that are on the device already."""
    dtype = pick_precision(options.precision, device)
    methods = {name: method_config(options, name) for name in options.methods}
    check_sizes(options, methods)
    head = "each method's own" if options.head is None else "-".join(map(str, options.head))
    facts = [
        ("methods", f"{', '.join(options.methods)}; global head {head}, {options.optimizer['name']}"),
        ("step", "normalisation of uint8 views, forward, backward, update; views are on the device already"),
        options.turns(),
    ]
    return Suite(facts, _comparison(options, methods, device, dtype))
