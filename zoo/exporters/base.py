"""What is exported, what a format is, and how a written file is held to the backbone it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.backbones import Backbone, Features
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.errors import UserError

TOLERANCE = 1e-4
"""Largest difference of a feature from the backbone's, as a share of the largest feature."""


@dataclass(frozen=True)
class Facts:
    """What is known of a backbone beside its weights, for a model card; empty where nothing is.

    Attributes:
        license: an SPDX-like identifier as the Hugging Face hub has them (``apache-2.0``), None where it is unknown.
        config: the run's ``config.yaml`` as plain values.
        results: the files of the run's ``results`` folder, parsed.
        published: further lines ``(what, value)`` of a published checkpoint.
    """

    license: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Mapping[str, Any], ...] = ()
    published: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Subject:
    """A backbone to export.

    Attributes:
        backbone: on the CPU, in evaluation mode.
        preprocess: what images go through before it.
        name: of the model, for cards and files.
        extra: further metadata for a safetensors file.
        digest: SHA-256 of the file that the weights came from, None where there is none.
    """

    backbone: Backbone
    preprocess: Preprocess
    name: str
    extra: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    digest: str | None = None

    def random_images(self, count: int) -> Tensor:
        """Normally distributed input ``(count, C, S, S)``, the same every time."""
        generator = torch.Generator().manual_seed(count)
        size = self.preprocess.size
        return torch.randn(count, self.backbone.config.in_channels, size, size, generator=generator)


@dataclass(frozen=True)
class Format:
    """A way to write a backbone.

    Attributes:
        write: writes a subject to a path and returns how it is loaded, line by line.
        suffixes: that the file may have, the first by default; none for a folder.
        describes: in a few words.
        sized: whether what is written depends on the side of the images.
    """

    write: Callable[[Subject, Path], list[str]]
    suffixes: tuple[str, ...]
    describes: str
    sized: bool = False


def not_in(subject: Subject, format_: str, why: str) -> UserError:
    """The refusal of a backbone that a format has no place for."""
    return UserError(f"format={format_} has no place for {subject.backbone.config.name}: {why}")


def plain_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory and are contiguous."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def features_of(subject: Subject, images: Tensor) -> Features:
    """What the backbone gives, without gradients."""
    with torch.no_grad():
        return subject.backbone(images)


def require_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    """Hold what an exported network gives to what the backbone gives.

    Raises:
        UserError: shapes differ, or a number by more than `TOLERANCE` of the largest one.
    """
    if found.shape != wanted.shape:
        raise UserError(f"{what} is {tuple(found.shape)}, the backbone gives {tuple(wanted.shape)}: nothing is written")
    scale = float(wanted.abs().max()) or 1.0
    difference = float((found.detach() - wanted).abs().max()) / scale
    if not difference <= TOLERANCE:
        raise UserError(f"{what} differs from the backbone's by {difference:.1e} of its scale: nothing is written")
