"""The global batch: what every process holds, joined so that DDP's averaged gradients are exact."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes; 1 where no process group exists."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """All-gather along a dimension whose backward sums over the processes.

    Every process computes the same loss of the joined batch, so each holds the gradient of its own copy with respect
    to every row. Their sum over W processes is W times the gradient of one loss, which DDP's mean divides by W again.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, tensor.shape[dim]
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.narrow(ctx.dim, dist.get_rank() * ctx.size, ctx.size), None


def gather_batch(tensor: Tensor, dim: int = -2) -> Tensor:
    """Join ``tensor`` over all processes along ``dim`` (the batch), in rank order, with gradients.

    With one process it is ``tensor`` itself. Every process must hold the same shape: the training sampler gives equal
    batches.
    """
    if world_size() == 1:
        return tensor
    result: Tensor = _Gather.apply(tensor.contiguous(), dim % tensor.ndim)
    return result
