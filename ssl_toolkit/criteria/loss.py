"""How a loss whose gradient is written out becomes part of a graph.

The criteria here know their gradients in closed form and share most of the work between value and gradient: the Gram
matrix, the centred batch, the normalised vectors. So value and gradient are computed together, chunk by chunk, and one
autograd node hands the gradient on. Against autograd on the same formulas this is what keeps the chunks in cache and
saves every intermediate from being stored. It costs second derivatives, which are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_toolkit.criteria.distributed import sum_over_ranks, world_size
from ssl_toolkit.criteria.precision import full_precision, no_autocast

CHUNK = {"cpu": 2**21}
"""Bytes to work on at a time, by type of device: what a CPU's cache holds."""
CHUNK_ELSEWHERE = 2**28


def chunk_bytes(device: torch.device) -> int:
    """Bytes of one operand to work on at a time."""
    return CHUNK.get(device.type, CHUNK_ELSEWHERE)


class Loss(NamedTuple):
    """``total`` is a float32 scalar with a graph (float64 for float64 inputs); ``terms`` are its detached, weighted
    parts, which add up to it."""

    total: Tensor
    terms: dict[str, Tensor]


class Parts(NamedTuple):
    """What a criterion computed: this process's share of each weighted term, and of ``total`` the gradients.

    Attributes:
        terms: scalars; their sum over processes is the term of the joined batch.
        gradients: with respect to this process's inputs, in their order; empty where none were asked for.
        cancelled: bool, whether a group lost its covariance to cancellation; None where that cannot happen.
    """

    terms: dict[str, Tensor]
    gradients: list[Tensor]
    cancelled: Tensor | None = None


class NonFiniteError(ValueError):
    """A loss is NaN or infinite; the message names the input at fault."""


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], scale: float, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.scale = scale
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad * ctx.scale
        needed = ctx.needs_input_grad[3:]
        results: list[Tensor | None] = [
            g * grad.reshape(grad.shape + (1,) * (g.ndim - grad.ndim)) if wanted else None
            for g, wanted in zip(ctx.saved_tensors, needed)
        ]
        return (None, None, None, *results)


def attach(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """``value`` as a function of ``inputs``, with gradients that are known already.

    Args:
        value: any shape ``(...)``.
        inputs: tensors that the graph reaches.
        gradients: one for each input, ``(..., *)``: derivatives of ``value``, whose shape leads theirs.
        scale: factor on the gradients alone.
    """
    result: Tensor = _Attach.apply(value, gradients, scale, *inputs)
    return result


def gradient_wanted(inputs: Sequence[Tensor]) -> bool:
    """Whether anything would use a gradient."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


def evaluate(name: str, inputs: Sequence[Tensor], compute: Callable[[list[Tensor], bool], Parts]) -> Loss:
    """Run ``compute`` in full precision, without a graph, and join what the processes found.

    Where float32 loses a covariance to cancellation, everything is computed again in float64.

    Args:
        name: of the inputs, for messages.
        inputs: ``compute`` gets them detached, in float32 or float64.
        compute: of inputs, and whether gradients are wanted.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    inputs = [full_precision(t) for t in inputs]
    wanted = gradient_wanted(inputs)
    with torch.no_grad(), no_autocast(inputs[0]):
        detached = [t.detach() for t in inputs]
        parts = compute(detached, wanted)
        terms, total, finite, lost = _joined(parts)
        if lost and inputs[0].dtype == torch.float32 and inputs[0].device.type != "mps":  # MPS has no float64
            parts = compute([t.double() for t in detached], wanted)
            terms, total, finite, _ = _joined(parts)
            parts = Parts(terms, [g.float() for g in parts.gradients])
        if not finite:
            raise not_finite({f"{name}[{i}]": t for i, t in enumerate(detached)})
        total = total.to(inputs[0].dtype)
        terms = {k: v.to(inputs[0].dtype) for k, v in terms.items()}
    if wanted:
        total = attach(total, inputs, parts.gradients, float(world_size()))
    return Loss(total, terms)


def _joined(parts: Parts) -> tuple[dict[str, Tensor], Tensor, bool, bool]:
    """Terms and total over all processes, whether it is finite, and whether any process lost a group to cancellation.

    The two answers are read together: each reading waits for the device.
    """
    values = list(parts.terms.values())
    flag = values[0].new_zeros(()) if parts.cancelled is None else parts.cancelled.to(values[0].dtype)
    *values, flag = sum_over_ranks(torch.stack([*values, flag])).unbind()
    total = torch.stack(values).sum()
    finite, lost = torch.stack((torch.isfinite(total), flag > 0)).tolist()
    return dict(zip(parts.terms, values)), total, finite, lost


def not_finite(named: dict[str, Tensor]) -> NonFiniteError:
    """The error for a loss of these arguments that is NaN or infinite, naming the one at fault."""
    for name, tensor in named.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            return NonFiniteError(
                f"{name} of shape {tuple(tensor.shape)} has {bad} values that are not finite (NaN or inf)"
            )
    largest = {name: float(t.abs().max()) for name, t in named.items() if t.numel()}
    name = max(largest, key=largest.__getitem__)
    elsewhere = "; or another process has values that are not finite" if world_size() > 1 else ""
    return NonFiniteError(
        f"{name} of shape {tuple(named[name].shape)} has values as large as {largest[name]:.3g}: the loss overflows"
        f"{elsewhere}"
    )
