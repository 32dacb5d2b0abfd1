"""What a checkpoint remembers of its run, and whether a run may continue from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.parts import Parts

FREE = (
    "trainer.workers",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_every",
    "trainer.max_unreadable",
    "trainer.device",
    "trainer.devices",
    "trainer.compile",
    "trainer.precision",
    "views.engine",
    "data.root",
)
"""Keys that may be given with ``run=``: how fast a run goes, where its data lies, what is written of it.

Of ``precision`` what it resolves to must stay, of ``root`` what lies there. With another device, another number of
processes, a compiled backbone or another engine the numbers differ in their last digits, which is said."""

FREE_SECTIONS = ("monitor", "launcher")
"""Sections whose keys may be given with ``run=`` too: they watch, or say where to train."""

BEFORE = ("name", "runs_dir", "run", "init")
"""Keys that have done their work when a run starts."""


def is_free(key: str) -> bool:
    """Whether ``key`` may differ when a run continues."""
    return key in FREE or key.split(".")[0] in FREE_SECTIONS


def fingerprint(parts: Parts) -> dict[str, Any]:
    """What is stored of a run in its checkpoints, as plain values.

    ``config`` in full; ``same``, which must not change; ``near``, with which the numbers change in their last digits;
    ``preprocessing``, which an exported backbone is told of.
    """
    config: Any = OmegaConf.to_container(parts.config, resolve=True)
    near = {
        "processes": parts.world.size,
        "device": parts.device.type,
        "engine": parts.engine.name,
        "compile": parts.trainer.compile,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads() if parts.device.type == "cpu" else None,
    }
    same = {"precision": str(parts.dtype).removeprefix("torch."), **data_identity(parts.dataset)}
    return {"config": config, "same": same, "near": near, "preprocessing": preprocessing(parts.dataset)}


def data_identity(dataset: ImageDataset) -> dict[str, Any]:
    """Number and `ImageDataset.fingerprint` of the images; None for the latter where a file is missing."""
    try:
        found: str | None = dataset.fingerprint()
    except UserError:  # training skips what it cannot read
        found = None
    return {"images": len(dataset), "contents": found}


def preprocessing(dataset: ImageDataset) -> dict[str, Any]:
    """What images go through before the backbone, as an exported one is told."""
    stats = dataset.config
    return {
        "mean": list(stats.mean),
        "std": list(stats.std),
        "eval_resize": stats.eval_resize,
        "eval_size": stats.eval_size,
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optimizer.lr": 0.1}`` of nested dicts; lists of dicts too."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            value = {str(position): entry for position, entry in enumerate(value)}
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each key with two values, or in one of both alone."""
    keys = sorted(before.keys() | now.keys())
    values = [(key, before.get(key, "not set"), now.get(key, "not set")) for key in keys]
    return [f"{key} was {old}, is {new}" for key, old, new in values if old != new]


def check_same(stored: Mapping[str, Any], now: Mapping[str, Any], path: object) -> list[str]:
    """Refuse to continue another run's checkpoint.

    Args:
        stored, now: `fingerprint` of the checkpoint and of the run as it would continue.
        path: of the checkpoint, for the message.

    Returns:
        A phrase for each difference that only changes the last digits of the numbers.

    Raises:
        UserError: naming each key that differs, with both values.
    """
    configs = [
        {key: value for key, value in flat(side["config"]).items() if not is_free(key) and key not in BEFORE}
        for side in (stored, now)
    ]
    wrong = differences(*configs)
    if wrong:
        raise UserError(
            f"{path} is of another config: {'; '.join(wrong)}; put config.yaml back, or start a new run with init="
        )
    before, after = stored["same"], now["same"]
    if before["precision"] != after["precision"]:
        keep = "bf16" if before["precision"] == "bfloat16" else "fp32"
        raise UserError(
            f"{path} was trained in {before['precision']}, trainer.precision means {after['precision']} here; give "
            f"trainer.precision={keep}"
        )
    if before["images"] != after["images"]:
        raise UserError(
            f"{path} is of {before['images']:,} training images, there are {after['images']:,} now: put the data back "
            "as it was, or start a new run with init="
        )
    if before["contents"] != after["contents"]:
        raise UserError(
            f"{path} is of other training images, by their names and sizes or contents (fingerprint was "
            f"{before['contents']}, is {after['contents']}): put the data back as it was, or start a new run with init="
        )
    return differences(stored["near"], now["near"])
