"""The loss of a whole batch whose images pass through the network in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from ssl_toolkit.criteria.loss import attach
from ssl_toolkit.methods.base import Embedded, Method, MethodOutput
from ssl_toolkit.views.batch import ViewBatch


class Buffers:
    """A copy of a module's buffers (running statistics of norms), to undo what a forward pass did to them."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._buffers = list(module.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the last copy back."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)


def _joined(parts: list[Embedded]) -> Embedded:
    def join(views: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(view) for view in zip(*views))

    return Embedded(
        torch.cat([part.pooled for part in parts]),
        tuple(view.requires_grad_() for view in join([part.whole for part in parts])),
        tuple(view.requires_grad_() for view in join([part.cells for part in parts])),
        parts[0].sizes,
        join([part.features for part in parts]),
    )


def accumulated(
    method: Method, batch: ViewBatch, parts: int, buffers: Buffers, seed: Callable[[int], None]
) -> MethodOutput:
    """`Method.forward` in the memory of a part of the batch, for one more forward pass (Gao et al. 2021, GradCache).

    All parts are embedded without a graph, the loss of all embeddings is taken together with its gradient, then each
    part is embedded again and that gradient goes on through the network. Loss and gradient are those of the whole
    batch, as neither adding up losses of parts nor a queue of old embeddings would make them: the statistics of
    VICReg and the negatives of SimCLR are over the batch. BatchNorm alone sees a part at a time, as it sees one
    device's images where it is not synchronised.

    Args:
        batch: normalised; its size must divide by ``parts``.
        buffers: of ``method``.
        seed: makes what is random in the network the same in both passes; called with the number of the part.

    Returns:
        A loss whose backward pass adds the gradient of the last part: that of the others is in ``grad`` already.
    """
    rows = [slice(start, start + len(batch) // parts) for start in range(0, len(batch), len(batch) // parts)]
    chunks = [batch.map(itemgetter(part)) for part in rows]
    buffers.save()
    first = []
    with torch.no_grad():
        for number, chunk in enumerate(chunks):
            seed(number)
            first.append(method.embed(chunk))
    buffers.restore()  # the second pass counts
    torch.clear_autocast_cache()  # weights were cast without a graph
    embedded = _joined(first)
    output = method.compare(embedded, batch)
    leaves = [*embedded.whole, *embedded.cells]
    gradients = torch.autograd.grad(output.loss, leaves)
    for number, (part, chunk) in enumerate(zip(rows, chunks)):
        seed(number)
        again = method.embed(chunk)
        reached = [*again.whole, *again.cells]
        if number < parts - 1:
            torch.autograd.backward(reached, [gradient[part] for gradient in gradients])
            torch.clear_autocast_cache()
    return output._replace(loss=attach(output.loss.detach(), reached, [gradient[rows[-1]] for gradient in gradients]))
