"""What a person should know of a run before it starts."""

from __future__ import annotations

from rich.console import Console

from ssl_toolkit.hardware import describe_hardware
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.training.parts import Parts
from ssl_toolkit.training.schedules import rate_factor


def describe(parts: Parts, console: Console) -> None:
    """Print what will run."""
    config, trainer = parts.config, parts.trainer
    parameters = sum(p.numel() for p in parts.method.backbone.parameters())
    maps = ", ".join(dict.fromkeys(f"{h}x{w}" for h, w in parts.map_sizes))
    details = [f"{key} {value}" for key, value in config.method.items() if key in ("preset", "alpha", "temperature")]
    local = config.method.get("local")
    if local is not None:
        details.append(f"matching {local.matching}")
    rows = [
        ("method", f"{config.method.name} ({', '.join(details)})"),
        (
            "backbone",
            f"{config.backbone.name}, {parameters / 1e6:.2f} M parameters, "
            f"{parts.method.backbone.num_features} features, maps {maps}",
        ),
        ("data", f"{config.data.name}, {len(parts.dataset):,} training images"),
        *(("views", group.describe(parts.dataset.in_channels)) for group in parts.views.groups),
        ("engine", f"{parts.engine.name} ({parts.engine.reason})"),
        ("training", optimization(parts)),
        ("hardware", f"{describe_hardware(parts.device, parts.dtype)}, {trainer.workers} view workers"),
        *([("processes", _processes(parts))] if parts.world.size > 1 else []),
    ]
    for name, text in rows:
        console.print(f"  [bold]{name:<9}[/bold] {text}", highlight=False, soft_wrap=True)
    for sentence in advice(parts):
        console.print(f"  [bold yellow]note[/bold yellow]      {sentence}", highlight=False, soft_wrap=True)


def _processes(parts: Parts) -> str:
    sync = parts.device.type == "cuda" and parts.trainer.sync_batchnorm
    where = f" on {parts.world.nodes} machines" if parts.world.nodes > 1 else ""
    return (
        f"{parts.world.size}{where}, {parts.batch_per_process} images a step each, "
        f"BatchNorm over {'all of them' if sync else 'the images of each'}"
    )


def optimization(parts: Parts) -> str:
    """Steps, the peak rate and what it comes from, warm-up, end of the cosine, weight decay."""
    options, trainer = OPTIMIZERS.options(parts.config.optimizer), parts.trainer
    peak = options.peak(trainer.batch_size)
    base = f" ({options.lr:g} x {trainer.batch_size:,} / 256)" if options.scale_by_batch else ""
    end = options.final_weight_decay()
    decay = f"{options.weight_decay:g}" + (f" to {end:g}" if end != options.weight_decay else "")
    layers = f", each layer {options.layer_decay:g} times as fast as the next" if options.layer_decay != 1 else ""
    return (
        f"{parts.total_steps:,} steps of {trainer.batch_size:,} images ({parts.steps_per_epoch:,} an epoch), "
        f"{parts.config.optimizer.name}, learning rate {peak:g}{base} after {parts.warmup_steps:,} warm-up steps, "
        f"cosine to {peak * options.final_factor:g}, weight decay {decay}{layers}"
    )


def advice(parts: Parts) -> list[str]:
    """The method's own, and what its views and the length of the run say about the optimizer."""
    found = parts.method.advice(parts.map_sizes, parts.views.num_large)
    if len(parts.map_sizes) > parts.views.num_large and parts.config.optimizer.name == "lars":
        found.append(
            "small views with LARS: VICRegL's authors trained multi-crop with AdamW (optimizer=adamw), and used LARS "
            "on two large views only"
        )
    warmup, total = parts.warmup_steps, parts.total_steps
    if warmup >= total:
        reached = rate_factor(total - 1, warmup, total, 0.0)
        found.append(
            f"the warm-up of {warmup:,} steps is as long as the run of {total:,} or longer: the learning rate reaches "
            f"{reached:.0%} of its peak and never falls; lower optimizer.warmup_epochs"
        )
    return found
