"""A step that had no finite loss, done again to see where it broke."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import METHODS
from ssl_toolkit.training.callbacks.failures import Failure, read_failure
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.run import read_run_config

SHOWN = 5


@dataclass(frozen=True)
class Attempt:
    """The step in one precision.

    Attributes:
        precision: ``bf16`` or ``fp32``.
        failure: why the loss is not finite; None where it is.
        loss, terms: NaN and empty where it is not.
        layer: the first module whose output is not finite, by its name in the method; None where all are.
        largest: absolute value in the output of any module before that.
    """

    precision: str
    failure: str | None
    loss: float
    terms: dict[str, float]
    layer: str | None
    largest: float


def replay(path: Path, console: Console) -> list[Attempt]:
    """Do a stored step again in the run's precision and in float32, and print what happens.

    Args:
        path: ``failures/step-*.pt`` of a run.

    Raises:
        UserError: no such file, not a failed step, or one that does not fit the config of its run.
    """
    failure = read_failure(path)
    config = read_run_config(path.resolve().parent.parent)
    _print_step(failure, config, console)
    precisions = dict.fromkeys((str(failure.about["precision"]), "fp32"))
    attempts = [_attempt(failure, config, precision) for precision in precisions]
    for attempt in attempts:
        _print_attempt(attempt, console)
    return attempts


def broken_weights(weights: Mapping[str, Tensor]) -> list[str]:
    """``"backbone.stem.weight: norm nan, 3 of 27 values are not finite"``, of each such tensor."""
    found = []
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            bad = int((~weight.isfinite()).sum())
            norm = float(weight.double().norm())
            found.append(f"{name}: norm {norm:g}, {bad:,} of {weight.numel():,} values are not finite")
    return found


def _largest_weights(weights: Mapping[str, Tensor]) -> list[str]:
    norms = {name: float(w.double().norm()) for name, w in weights.items() if w.is_floating_point() and w.ndim > 1}
    finite = {name: norm for name, norm in norms.items() if norm < float("inf")}
    return [f"{name}: norm {finite[name]:g}" for name in sorted(finite, key=finite.__getitem__, reverse=True)[:SHOWN]]


def _module(failure: Failure, config: DictConfig) -> Pretraining:
    method = METHODS.build(config.method, backbone=create_backbone(config.backbone))
    try:
        method.load_state_dict(failure.weights)
    except RuntimeError as error:
        raise UserError(f"the weights of step {failure.step} do not fit the run's config: {error}") from error
    if config.trainer.channels_last:
        method.to(memory_format=torch.channels_last)
    about = failure.about
    return Pretraining(
        method,
        mean=about["mean"],
        std=about["std"],
        optimizer={},
        batch_size=len(failure.batch),
        steps_per_epoch=1,
        total_steps=1,
        accumulate=about["accumulate"],
        seed=about["seed"],
        rank=failure.rank,
        position=lambda: failure.step - 1,
    ).to("cuda" if torch.cuda.is_available() else "cpu")


def _attempt(failure: Failure, config: DictConfig, precision: str) -> Attempt:
    module = _module(failure, config)
    reduced = torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bf16")
    with _watched(module.method) as seen, reduced:
        output = module.training_step(failure.batch.to(module.device), 0)
    terms = {name: float(value) for name, value in output["terms"].items()}
    return Attempt(
        precision, output["failure"], float(output["loss"].detach()), terms, seen.get("layer"), seen["largest"]
    )


@contextmanager
def _watched(method: nn.Module) -> Iterator[dict[str, Any]]:
    """What the outputs of all modules show, as they are computed: ``layer``, ``largest`` of an `Attempt`."""
    seen: dict[str, Any] = {"largest": 0.0}

    def look(name: str, output: Any) -> None:
        if "layer" in seen:
            return
        for tensor in _tensors(output):
            if not bool(tensor.isfinite().all()):
                seen["layer"] = name
                return
            if tensor.numel():
                seen["largest"] = max(seen["largest"], float(tensor.detach().abs().max()))

    handles = [
        part.register_forward_hook(lambda _, __, output, name=name: look(name or "the method", output))
        for name, part in method.named_modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def _print(console: Console, name: str, text: str) -> None:
    console.print(f"  [bold]{name:<9}[/bold] ", end="")
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_step(failure: Failure, config: DictConfig, console: Console) -> None:
    seed = failure.about["seed"]
    _print(console, "step", f"{failure.step} of {config.method.name} on {config.data.name}, seed {seed}")
    _print(console, "reason", failure.reason)
    indices = failure.batch.index.tolist()
    _print(console, "images", f"{len(indices)} of the training data: {', '.join(map(str, indices))}")
    pixels = [view.image for view in failure.batch.views if not bool(view.image.isfinite().all())]
    if pixels:
        _print(console, "pixels", f"not finite in {len(pixels)} of {len(failure.batch.views)} views")
    broken = broken_weights(failure.weights)
    if broken:
        more = [f"{len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
        text = f"not finite before this step, so an earlier one broke them: {'; '.join([*broken[:SHOWN], *more])}"
    else:
        text = f"all finite before this step; the largest: {'; '.join(_largest_weights(failure.weights))}"
    _print(console, "weights", text)


def _print_attempt(attempt: Attempt, console: Console) -> None:
    terms = ", ".join(f"{name} {value:.6g}" for name, value in attempt.terms.items())
    if attempt.failure is None:
        _print(console, attempt.precision, f"loss {attempt.loss:.6g} ({terms})")
    else:
        _print(console, attempt.precision, f"no finite loss: {attempt.failure}")
    if attempt.layer is None:
        where = "the outputs of all layers are finite; values"
    else:
        where = f"the first output that is not finite is that of {attempt.layer}; values before it"
    _print(console, "", f"{where} reach {attempt.largest:.3g}")
