"""When a finished run may be used again: the same config, trained and evaluated by the same code."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib import resources
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssl_toolkit.training import resolved

TRAINED_BY = ("backbones", "criteria", "data", "matching", "methods", "processes", "training", "views")
"""Packages that decide what comes out of a training."""

EVALUATED_BY = (*TRAINED_BY, "evaluation")

NOT_IDENTITY = ("name", "runs_dir", "run", "init", "launcher")


@lru_cache
def code_digest(packages: tuple[str, ...]) -> str:
    """A hash of the source of some of this toolkit's packages."""
    digest = hashlib.sha256()
    for package in packages:
        _add(resources.files(f"ssl_toolkit.{package}"), package, digest)
    return digest.hexdigest()[:16]


def _add(folder: Any, name: str, digest: Any) -> None:
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir() and item.name != "__pycache__":
            _add(item, f"{name}/{item.name}", digest)
        elif item.name.endswith(".py"):
            digest.update(f"{name}/{item.name}\0".encode() + item.read_bytes())


def run_identity(config: DictConfig) -> str:
    """A hash of everything in the resolved config that a run's outcome depends on, and of the code that trains it."""
    plain: Any = OmegaConf.to_container(resolved(config), resolve=True)
    kept = {key: value for key, value in plain.items() if key not in NOT_IDENTITY}
    text = json.dumps([kept, code_digest(TRAINED_BY)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
