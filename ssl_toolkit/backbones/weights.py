"""Backbone weights as a safetensors file that says which architecture they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Backbone, BackboneConfig
from ssl_toolkit.backbones.create import create_backbone
from ssl_toolkit.backbones.timm_backbone import TimmBackbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path

FORMAT_VERSION = "1"
VERSION, CONFIG, PREPROCESSING = "ssl_toolkit_backbone", "config", "preprocessing"
SHOWN = 3


@dataclass(frozen=True)
class BackboneMetadata:
    """What a backbone file says beside its weights.

    Attributes:
        config: the options as they were stored.
        preprocessing: what images went through before the backbone (``mean``, ``std``, sizes).
        extra: whatever else was stored.
    """

    config: dict[str, Any]
    preprocessing: dict[str, Any]
    extra: dict[str, str] = field(default_factory=dict)


def _network(backbone: Backbone) -> nn.Module:
    """The module whose weights are stored: timm's own, so that the file loads into timm without renaming."""
    return backbone.model if isinstance(backbone, TimmBackbone) else backbone


def save_backbone(
    path: Path, backbone: Backbone, preprocessing: Mapping[str, Any], extra: Mapping[str, str] | None = None
) -> None:
    """Write the weights of ``backbone``, its config and ``preprocessing`` to a safetensors file, atomically.

    Names carry no prefix: the file of a timm backbone is a state dict of
    ``timm.create_model(name, num_classes=0)``.

    Args:
        preprocessing: plain values (mean and std lists, sizes in pixels); stored as JSON.
        extra: further metadata; its keys may not be the reserved ones.

    Raises:
        UserError: ``path`` cannot be written; what was there is kept.
        ValueError: a reserved key in ``extra``, or a value that JSON does not know.
    """
    metadata = {
        VERSION: FORMAT_VERSION,
        CONFIG: json.dumps(backbone.config.as_dict()),
        PREPROCESSING: json.dumps(dict(preprocessing), allow_nan=False),
    }
    for key, value in (extra or {}).items():
        if key in metadata:
            raise ValueError(f"metadata key {key!r} is reserved")
        metadata[key] = value
    # Copies: safetensors refuses tensors that share memory or are not contiguous (channels_last).
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in _network(backbone).state_dict().items()
    }
    with atomic_path(Path(path)) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}; what was there is kept") from error


def _read(path: Path, tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata of a safetensors file and, if asked for, its tensors."""
    if not path.is_file():
        raise UserError(f"no backbone file {path}: {'it is a folder' if path.is_dir() else 'it does not exist'}")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
            return dict(file.metadata() or {}), found
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a safetensors file or is damaged ({reason})") from error


def _parse(path: Path, metadata: Mapping[str, str]) -> BackboneMetadata | None:
    if VERSION not in metadata:
        return None
    if metadata[VERSION] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {metadata[VERSION]}, this version reads {FORMAT_VERSION}: update ssl-toolkit"
        )
    values = {}
    for key in (CONFIG, PREPROCESSING):
        try:
            values[key] = json.loads(metadata.get(key, ""))
        except ValueError as error:
            raise UserError(f"{path}: its {key!r} is not valid JSON ({error}); export it again") from error
        if not isinstance(values[key], dict):
            raise UserError(f"{path}: its {key!r} is not a mapping; export it again")
    extra = {key: value for key, value in metadata.items() if key not in (VERSION, CONFIG, PREPROCESSING)}
    return BackboneMetadata(values[CONFIG], values[PREPROCESSING], extra)


def read_metadata(path: Path) -> BackboneMetadata | None:
    """What a backbone file says beside its weights, or None where it has no metadata of ours.

    Raises:
        UserError: the file is missing, is not safetensors, or its metadata is broken.
    """
    return _parse(Path(path), _read(Path(path), tensors=False)[0])


def read_backbone(path: Path, expect: BackboneConfig | None = None) -> tuple[Backbone, dict[str, Any]]:
    """The backbone that a file holds, in evaluation mode, and its preprocessing.

    Args:
        expect: the architecture that is wanted; needed where the file does not say what it holds. Its
            ``drop_path`` and ``image_size`` win over the stored ones.

    Returns:
        The backbone with every weight from the file, and the preprocessing (``{}`` where the file has none).

    Raises:
        UserError: the file is missing, damaged, of another architecture, or says nothing and no ``expect``.
    """
    path = Path(path)
    raw, tensors = _read(path, tensors=True)
    metadata = _parse(path, raw)
    if expect is not None:
        backbone = create_backbone(expect)
    elif metadata is not None:
        backbone = _stored_backbone(path, metadata)
    else:
        raise UserError(f"{path} does not say which architecture it holds: name it (backbone=...)")
    network = _network(backbone)
    problems = _differences(network.state_dict(), tensors)
    wanted = _describe(backbone.config.as_dict())
    stored = _describe(metadata.config) if metadata else "something else"
    if problems or (metadata and stored != wanted):
        holds = f"holds {stored}, not {wanted}" if stored != wanted else f"is no complete {wanted}"
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError(": ".join(filter(None, (f"{path} {holds}", "; ".join(problems[:SHOWN] + more)))))
    network.load_state_dict(tensors)
    return backbone.eval(), metadata.preprocessing if metadata else {}


def _stored_backbone(path: Path, metadata: BackboneMetadata) -> Backbone:
    try:
        return create_backbone(metadata.config)
    except UserError as error:
        raise UserError(f"{path} holds a backbone that cannot be built here: {error}") from error


def _describe(config: Mapping[str, Any]) -> str:
    """An architecture in a few words: ``resnet18 (3 channels, stem small)``."""
    stem = "" if config.get("stem", "imagenet") == "imagenet" else f", stem {config['stem']}"
    return f"{config.get('name')} ({config.get('in_channels')} channels{stem})"


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each weight that is missing, left over or of another shape."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is not part of it" for name in found if name not in wanted]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    return problems
