"""What a run cost, read from what it logged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssl_toolkit.reporting.runs import RunFolder


def cost(run: RunFolder) -> dict[str, float]:
    """Of the training of a run, as far as it was logged.

    Returns:
        ``images/s``, the median of what was logged; ``training minutes``, all steps at that speed, so that a stop and
        a wait do not count; ``peak GiB`` of a GPU's memory.
    """
    found: dict[str, float] = {}
    if "images_per_second" in run.metrics and len(speeds := run.curve("images_per_second")[1]):
        found["images/s"] = float(np.median(speeds))
        batch = run.config.get("trainer", {}).get("batch_size")
        if isinstance(batch, int):
            found["training minutes"] = float(run.metrics["step"][-1]) * batch / found["images/s"] / 60
    if "peak_memory_gib" in run.metrics and len(peaks := run.curve("peak_memory_gib")[1]):
        found["peak GiB"] = float(peaks.max())
    return found


def cost_rows(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """``"cost: images/s"`` to the number of each run, empty where it logged none."""
    costs = [cost(run) for run in runs]
    names = dict.fromkeys(name for found in costs for name in found)
    digits = {"images/s": 0}
    return {
        f"cost: {name}": [f"{c[name]:,.{digits.get(name, 1)}f}" if name in c else "" for c in costs] for name in names
    }
