"""What the protocols that classify images report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import FeatureBank
from ssl_toolkit.evaluation.heads import Heads, edge_note
from ssl_toolkit.evaluation.metrics import ranks, top_accuracy
from ssl_toolkit.evaluation.protocol import Outcome, best_setting, missing_classes
from ssl_toolkit.evaluation.subsets import Labelled

TEST_CHUNK = 1024


@torch.no_grad()
def head_ranks(heads: Heads, bank: FeatureBank, norm: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """`ranks` of the true class of every image for every head, ``(L, N)``, on the CPU.

    Args:
        heads, norm: on ``device``; ``norm`` takes the features ``(n, D)`` before the heads do.
    """
    assert bank.labels is not None
    found = []
    for x, labels in zip(torch.split(bank.pooled, TEST_CHUNK), torch.split(bank.labels, TEST_CHUNK)):
        scores = heads(norm(x.to(device)).T).permute(1, 2, 0)
        found.append(ranks(scores, labels.to(device)).cpu())
    return torch.cat(found, 1)


def classification_outcome(
    settings: Sequence[Mapping[str, Any]],
    diverged: Sequence[bool],
    val: Tensor,
    test: Tensor,
    classes: Sequence[str],
    chosen: Labelled,
    option: str,
) -> Outcome:
    """The best of several classifiers by its top-1 on validation, reported on test.

    Args:
        settings: what each was trained with; the first key is what is swept.
        diverged: which of them did; they are never chosen.
        val, test: ranks ``(L, N)`` of the true classes.
        chosen: what they were trained on.
        option: where the swept values stand, for notes (``linear.lrs``).

    Raises:
        UserError: all diverged.
    """
    top1 = {split: top_accuracy(found, 1).tolist() for split, found in (("val", val), ("test", test))}
    grid = [
        {
            **setting,
            "val_top1": None if diverged[i] else top1["val"][i],
            "test_top1": None if diverged[i] else top1["test"][i],
            "diverged": diverged[i],
        }
        for i, setting in enumerate(settings)
    ]
    swept = next(iter(settings[0]))
    values = [setting[swept] for setting in settings]
    best = best_setting(grid, "val_top1")
    if best < 0:
        name = option.partition(".")[0]
        raise UserError(f"{name}: every learning rate diverged ({values}): add lower ones to {option}")
    metrics = {"top1": top1["test"][best]}
    if len(classes) > 5:
        metrics["top5"] = float(top_accuracy(test[best], 5))
    counts = torch.from_numpy(np.bincount(chosen.labels, minlength=len(classes)))
    notes = [*chosen.notes, *missing_classes(counts, classes, "training image")]
    notes += edge_note(values, values[best], option, swept)
    return Outcome(metrics, dict(settings[best]), grid, dict(chosen.details), notes)
