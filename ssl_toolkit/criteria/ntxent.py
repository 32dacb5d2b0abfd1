"""NT-Xent, SimCLR's contrastive loss, on groups of vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy over the 2N vectors of each group.

    Args:
        x, y: ``(..., N, D)``; row i of ``x`` and row i of ``y`` are a positive pair, all other 2N - 2 vectors of the
            group are negatives.
        temperature: divides the cosine similarities.

    Returns:
        One value per group, ``(...)``: the mean over the 2N anchors.

    Source: Chen et al., "SimCLR" (ICML 2020), Eq. 1 and Algorithm 1.
    """
    n = x.shape[-2]
    z = F.normalize(torch.cat((x, y), dim=-2), dim=-1)
    logits = z @ z.mT / temperature
    itself = torch.eye(2 * n, dtype=torch.bool, device=x.device)
    denominator = logits.masked_fill(itself, -torch.inf).logsumexp(dim=-1)
    positive = (z[..., :n, :] * z[..., n:, :]).sum(dim=-1) / temperature
    return denominator.mean(dim=-1) - positive.mean(dim=-1)
