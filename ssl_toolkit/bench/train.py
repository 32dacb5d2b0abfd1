"""``bench train``: a training step against its plain float32 form, and where the time of a training goes."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Counted, Suite
from ssl_toolkit.bench.memory import extra_peak
from ssl_toolkit.bench.step import Step, StepConfig, build, check_sizes, method_config, random_views
from ssl_toolkit.bench.view_rivals import make_files
from ssl_toolkit.config import choices, compose_config
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.errors import unknown
from ssl_toolkit.hardware import pick_precision
from ssl_toolkit.registry import typed
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.views import ViewBatch, ViewLoader, ViewsConfig, choose_engine, view_loader

CONTENDERS = ("fp32", "channels_last", "bf16", "compile", "accumulate")
PHASES = ("data", "forward", "criterion", "backward", "optimizer")


@dataclass
class TrainCase:
    """Sizes of one case.

    Attributes:
        backbone: name in ``configs/backbone``.
        image_size: side of the two views in pixels.
        batch_size: images a step.
    """

    backbone: str = "resnet50"
    image_size: int = 224
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.backbone not in choices("backbone"):
            raise ValueError(str(unknown("backbone", self.backbone, choices("backbone"))))
        if self.batch_size < 2 or self.image_size < 8:
            raise ValueError("batch_size of a case must be at least 2 and image_size at least 8")


@dataclass
class TrainBenchConfig(BenchConfig):
    """Options of ``bench train``.

    Attributes:
        cases: names in ``sizes``.
        contenders: what is compared with a step as `ssl-toolkit pretrain` runs it: ``fp32`` (the plain form),
            ``channels_last`` and ``bf16`` (each alone), ``compile`` (the backbone compiled as well), ``accumulate``
            (images pass in parts).
        method, optimizer: names in the config groups.
        head: widths of the global head; None takes the method's own.
        accumulate: parts of the contender of that name, see `ssl_toolkit.training.accumulation`.
        shares: whether to train on files as well.
        images: files made for that; ``steps`` of it are timed.
        workers: processes that make views.
        sizes: of each case by name.
    """

    rounds: int = 7
    budget: float = 120.0
    cases: list[str] = field(default_factory=lambda: ["resnet18", "resnet50"])
    contenders: list[str] = field(default_factory=lambda: ["fp32", "accumulate"])
    method: str = "vicregl"
    optimizer: str = "lars"
    head: list[int] | None = field(default_factory=lambda: [2048, 2048, 2048])
    accumulate: int = 4
    shares: bool = True
    images: int = 256
    steps: int = 8
    workers: int = 2
    sizes: dict[str, TrainCase] = field(
        default_factory=lambda: {"resnet18": TrainCase("resnet18", 64, 128), "resnet50": TrainCase()}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.cases:
            if name not in self.sizes:
                raise ValueError(str(unknown("case", name, self.sizes)))
            case = self.sizes[name]
            if self.accumulate < 1 or case.batch_size % self.accumulate or case.batch_size < 2 * self.accumulate:
                raise ValueError(
                    f"accumulate must divide the batch_size of {name}, {case.batch_size}, into parts of two"
                )
            if self.shares and self.images < case.batch_size:
                raise ValueError(f"images must be at least {case.batch_size}, the batch_size of {name}")
        for name in self.contenders:
            if name not in CONTENDERS:
                raise ValueError(str(unknown("contender", name, CONTENDERS)))
        if self.steps < 1 or self.workers < 0:
            raise ValueError("steps must be at least 1 and workers not negative")


@SUITES.register("train", TrainBenchConfig)
def train_suite(options: TrainBenchConfig, device: torch.device) -> Suite:
    """Each case twice: steps on views that are there already, then a training on files."""
    dtype = pick_precision("auto", device)
    chosen = {name: _step_options(options, options.sizes[name]) for name in options.cases}
    for step in chosen.values():
        check_sizes(step, {options.method: method_config(step, options.method)})
    head = "the method's own" if options.head is None else "-".join(map(str, options.head))
    facts = [
        ("training", f"{options.method}, global head {head}, {options.optimizer}"),
        ("step", "normalisation of uint8 views, forward, backward, update; views are on the device already"),
        options.turns(),
    ]
    return Suite(facts, _comparisons(options, chosen, device, dtype))


def _step_options(options: TrainBenchConfig, case: TrainCase) -> StepConfig:
    backbone = compose_config("pretrain", [f"backbone={case.backbone}"]).backbone
    optimizer: Any = compose_config("pretrain", [f"optimizer={options.optimizer}"]).optimizer
    OPTIMIZERS.options(optimizer)
    return StepConfig(
        methods=[options.method],
        backbone=typed(BackboneConfig, backbone, "backbone"),
        optimizer=dict(optimizer),
        batch_size=case.batch_size,
        image_size=case.image_size,
        head=options.head,
        seed=options.seed,
    )


def _comparisons(
    options: TrainBenchConfig, chosen: dict[str, StepConfig], device: torch.device, dtype: torch.dtype
) -> Iterator[Comparison | Counted]:
    for name, step in chosen.items():
        yield _steps(name, options, step, device, dtype)
        if options.shares:
            yield _shares(name, options, step, device, dtype)


class _Form(NamedTuple):
    """One way to run a step."""

    name: str
    dtype: torch.dtype
    channels_last: bool
    compiled: bool = False
    accumulate: int = 1


def _module(options: TrainBenchConfig, step: StepConfig, device: torch.device, form: _Form) -> Pretraining:
    step = replace(step, channels_last=form.channels_last)
    module = build(step, method_config(step, options.method), device)
    module.accumulate = form.accumulate
    if form.compiled:
        module.method.backbone.compile()
    return module


def _as_pretrain(dtype: torch.dtype) -> _Form:
    return _Form("ours", dtype, channels_last=True)


def _forms(options: TrainBenchConfig, dtype: torch.dtype) -> list[_Form]:
    others = {
        "fp32": _Form("fp32", torch.float32, channels_last=False),
        "channels_last": _Form("fp32, channels_last", torch.float32, channels_last=True),
        "bf16": _Form("bf16", torch.bfloat16, channels_last=False),
        "compile": _Form("compiled", dtype, channels_last=True, compiled=True),
        "accumulate": _Form(f"in {options.accumulate} parts", dtype, channels_last=True, accumulate=options.accumulate),
    }
    return [_as_pretrain(dtype), *(others[name] for name in options.contenders)]


def _steps(
    name: str, options: TrainBenchConfig, step: StepConfig, device: torch.device, dtype: torch.dtype
) -> Comparison:
    batch = random_views(step.batch_size, step.image_size, step.seed).to(device)
    contenders = []
    for form in _forms(options, dtype):
        contender = Step(_module(options, step, device, form), batch, form.dtype)
        contenders.append(Contender(form.name, contender, resident=contender.resident))
    title = f"{name}: step of {step.backbone.name}, 2x{step.image_size}, batch {step.batch_size}"
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    note = f"ours: as pretrain runs it, {precision}, channels_last. images/s are seed images, of two views each."
    return Comparison(title, contenders, items=step.batch_size, memory=True, notes=[note])


class Clock:
    """Adds up the seconds between its marks by name; waits for a GPU at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.last = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._wait()
        self.last = time.perf_counter()

    def mark(self, name: str) -> None:
        """The time since the last mark goes to ``name``."""
        self._wait()
        now = time.perf_counter()
        self.seconds[name] += now - self.last
        self.last = now

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timed_step(
    module: Pretraining, optimizer: torch.optim.Optimizer, batch: ViewBatch, dtype: torch.dtype, clock: Clock
) -> None:
    """A step of `Pretraining`, taken apart at its marks."""
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        normalized = batch.with_images(module.normalize)
    clock.mark("data")
    with torch.autocast(module.device.type, dtype, enabled=dtype != torch.float32):
        embedded = module.method.embed(normalized)
        clock.mark("forward")
        loss = module.method.compare(embedded, normalized).loss
    clock.mark("criterion")
    loss.backward()  # type: ignore[no-untyped-call]
    clock.mark("backward")
    optimizer.step()
    clock.mark("optimizer")


def _shares(
    name: str, options: TrainBenchConfig, step: StepConfig, device: torch.device, dtype: torch.dtype
) -> Counted:
    module = _module(options, step, device, _as_pretrain(dtype))
    with tempfile.TemporaryDirectory(prefix="ssl-toolkit-bench-") as folder:
        engine, loader = _loader(options, step, Path(folder), device)
        with contextlib.closing(loader):
            clock, peak = _trained(module, loader, options.steps, dtype, device)
    total = sum(clock.seconds.values())
    rate = options.steps * step.batch_size / total
    resident = Step(module, random_views(2, 8, 0), dtype).resident()
    memory = None if peak is None else peak + resident
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = f"{name}: training on JPEG files, {engine} engine, {options.workers} workers"
    for heading in ("images/s", *PHASES, "MB"):
        table.add_column(heading, justify="right")
    shares = [f"{100 * clock.seconds[phase] / total:.1f}%" for phase in PHASES]
    table.add_row(f"{rate:,.1f}", *shares, "n/a" if memory is None else f"{memory / 1e6:,.0f}")
    values = {
        "title": str(table.title),
        "items_per_second": rate,
        "seconds": clock.seconds,
        "steps": options.steps,
        "bytes": memory,
        "engine": engine,
    }
    note = "data: waiting for views, their transfer and normalisation. Two steps, in which workers start, are left out."
    return Counted(table, values, [note])


def _trained(
    module: Pretraining, loader: ViewLoader, steps: int, dtype: torch.dtype, device: torch.device
) -> tuple[Clock, int | None]:
    """Time of ``steps`` steps after two that warm up, and the peak memory of one more."""
    optimizer = module.configure_optimizers()["optimizer"]
    clock = Clock(device)
    batches = _endless(loader)
    for number in range(2 + steps):
        if number == 2:
            clock = Clock(device)
        clock.start()
        batch = next(batches).to(device, non_blocking=True)
        clock.mark("data")
        timed_step(module, optimizer, batch, dtype, clock)
    batch = next(batches).to(device)
    _, peak = extra_peak(device, lambda: timed_step(module, optimizer, batch, dtype, Clock(device)))
    return clock, peak


def _endless(loader: ViewLoader) -> Iterator[ViewBatch]:
    while True:
        yield from loader


def _loader(options: TrainBenchConfig, step: StepConfig, folder: Path, device: torch.device) -> tuple[str, ViewLoader]:
    files = make_files(folder, options.images, 375, 500, 90)
    images = FileDataset(files[0].parent, [str(file.absolute()) for file in files])
    views = compose_config("pretrain", ["views=vicreg", f"views.groups.0.size={step.image_size}"]).views
    recipe: ViewsConfig = typed(ViewsConfig, views, "views")
    engine = choose_engine("auto", device, images)
    position = _Position()
    loader = view_loader(
        engine.name,
        images,
        recipe,
        seed=options.seed,
        batch_size=step.batch_size,
        workers=options.workers,
        device=device,
        position=position,
    )
    position.steps_per_epoch = len(loader)
    return engine.name, loader


class _Position:
    """Every epoch is another."""

    def __init__(self) -> None:
        self.steps_per_epoch, self.epoch = 1, -1

    def __call__(self) -> int:
        self.epoch += 1
        return self.epoch * self.steps_per_epoch
