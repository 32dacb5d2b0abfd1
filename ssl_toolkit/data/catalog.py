"""The data sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from ssl_toolkit.data.base import SPLITS, ImageDataset
from ssl_toolkit.errors import unknown
from ssl_toolkit.registry import Registry

DATASETS: Registry[ImageDataset] = Registry("data set")
"""Factories are called as ``factory(options, split=split)``."""


def build_dataset(config: Mapping[str, Any] | DictConfig, split: str) -> ImageDataset:
    """One split of the data set that ``config`` describes.

    Args:
        config: key ``name`` and the options of that data set (a YAML of ``configs/data``).
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: an unknown name, option or split, a bad value, or images that cannot be found.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    dataset = DATASETS.build(config, split=split)
    dataset.name = str(config["name"])
    dataset.split = split
    return dataset
