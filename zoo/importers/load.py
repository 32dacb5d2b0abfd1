"""Checkpoints of other libraries as backbones of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ssl_toolkit.backbones import Backbone, BackboneConfig, create_backbone, read_backbone
from ssl_toolkit.backbones.variants import MOCO_V3_VITS
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.methods.heads import MLP
from ssl_toolkit.registry import typed
from ssl_toolkit.zoo.importers.convert import convert, require_complete
from ssl_toolkit.zoo.importers.formats import (
    CONTAINERS,
    Parts,
    Saved,
    find_weights,
    recognise,
    some,
    sort_weights,
)
from ssl_toolkit.zoo.importers.known import FORMATS, OURS
from ssl_toolkit.zoo.importers.reading import read_contents
from ssl_toolkit.zoo.index import IMAGENET_MEAN, IMAGENET_STD

OURS_IN_CHECKPOINT = "ssl_toolkit"
OURS_IN_METADATA = "ssl_toolkit_backbone"
TOLD = ("epoch", "global_step", "arch", "step", "iteration")
"""Keys of a checkpoint that are told as facts."""


@dataclass(frozen=True)
class Imported:
    """What `load_checkpoint` found in a file.

    Attributes:
        backbone: with every weight from the file, in evaluation mode; its ``config`` builds it again.
        heads: state dicts of what lay on top of it, by name: ``expander`` and ``local_projector`` (VICReg, VICRegL and
            this toolkit), else as the library calls them (``projector``, ``fc``, ``classifier``). `mlp` makes modules
            of the first two.
        preprocessing: ``mean`` and ``std`` of the images the backbone takes: the file's own where it has them,
            ImageNet's for images of 3 channels, else ``{}``.
        format: a key of `FORMATS`.
        facts: where in the file the weights lay (``weights``), what was left out and how often (``ignored``), whether
            ``preprocessing`` is from the file or assumed, ``epoch`` and the like.
    """

    backbone: Backbone
    heads: dict[str, dict[str, Tensor]]
    preprocessing: dict[str, Any]
    format: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> BackboneConfig:
        """The backbone's."""
        return self.backbone.config


def load_checkpoint(
    path: Path | str, *, format: str | None = None, arch: str | BackboneConfig | None = None
) -> Imported:
    """The backbone in a checkpoint file of any of `FORMATS`, with its heads.

    The format is recognised from the names of the weights, the architecture from their names and shapes. All weights of
    the backbone must be there and none may be left over.

    Args:
        path: ``.pth``, ``.ckpt``, ``.safetensors`` and so on; what it is, is read from its bytes.
        format: a key of `FORMATS`, where it is known.
        arch: the name of one of this toolkit's backbones, or its whole config; needed where shapes do not tell, as for
            most of timm's models.

    Raises:
        UserError: in one line that names the file: no file, not a checkpoint, one that would run code, a format or
            architecture that is not recognised, weights that are missing, left over or of another shape.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise unknown("format", format, FORMATS)
    contents = read_contents(path)
    if OURS_IN_METADATA in contents.metadata:
        return _exported(path, arch)
    saved = find_weights(contents.tree)
    if saved is None:
        raise UserError(
            f"{path} holds neither a state dict nor a checkpoint with one under {', '.join(map(repr, CONTAINERS))}"
        )
    found = format or recognise(saved)
    try:
        return _imported(path, saved, found, arch)
    except UserError as error:
        raise UserError(f"{path} (format {found}): {error}") from error


def _exported(path: Path, arch: str | BackboneConfig | None) -> Imported:
    backbone, preprocessing = read_backbone(path, arch if isinstance(arch, BackboneConfig) else None)
    if isinstance(arch, str) and arch != backbone.config.name:
        raise UserError(f"{path} holds {backbone.config.name}, not {arch}")
    return Imported(backbone, {}, preprocessing, OURS, {"weights": "backbone", "preprocessing": "of the file"})


def _imported(path: Path, saved: Saved, format_: str, arch: str | BackboneConfig | None) -> Imported:
    parts = sort_weights(saved, format_)
    if format_ == OURS:
        return _trained_here(saved, parts, arch)
    beside = _hub_config(path)
    config = _architecture(parts, saved, beside, arch)
    with torch.device("meta"):
        empty = create_backbone(config)
    try:
        weights, heads = convert(parts, empty)
    except UserError as error:
        raise UserError(_other_architecture(parts, config) + str(error)) from error
    preprocessing, source = _preprocessing(beside, config)
    facts = {**_told(saved, parts), "preprocessing": source}
    return Imported(_filled(config, weights), {**parts.heads, **heads}, preprocessing, format_, facts)


def _other_architecture(parts: Parts, config: BackboneConfig) -> str:
    """``it holds resnet50, `` where the shapes speak of another network than ``config``, else nothing."""
    try:
        found = _by_shapes(parts, None) if parts.layout is not None else config
    except UserError:
        return ""
    return f"it holds {found.name}, " if found.name != config.name else ""


def _filled(config: BackboneConfig, weights: Mapping[str, Tensor]) -> Backbone:
    backbone = create_backbone(config)
    backbone.load_state_dict(weights)
    return backbone.eval()


def _trained_here(saved: Saved, parts: Parts, arch: str | BackboneConfig | None) -> Imported:
    about = saved.beside.get(OURS_IN_CHECKPOINT)
    try:
        stored, preprocessing = about["config"]["backbone"], dict(about["preprocessing"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            "it has this toolkit's names, but does not say what it is; give the run's backbone.safetensors"
        ) from error
    config = typed(BackboneConfig, stored, "backbone")
    _require_same(config, arch)
    if isinstance(arch, BackboneConfig):
        config = arch
    with torch.device("meta"):
        wanted = create_backbone(config).state_dict()
    require_complete(parts.backbone, wanted, config.name)
    facts = {**_told(saved, parts), "preprocessing": "of the file"}
    return Imported(_filled(config, parts.backbone), parts.heads, preprocessing, OURS, facts)


def _require_same(config: BackboneConfig, arch: str | BackboneConfig | None) -> None:
    name = arch.name if isinstance(arch, BackboneConfig) else arch
    if name is not None and name != config.name:
        raise UserError(f"it holds {config.name}, not {name}")


def _architecture(
    parts: Parts, saved: Saved, beside: Mapping[str, Any], arch: str | BackboneConfig | None
) -> BackboneConfig:
    """The config of the backbone: ``arch`` where it is whole, else by shapes, else by what the checkpoint says."""
    name = arch.name if isinstance(arch, BackboneConfig) else arch
    if parts.layout is not None:
        config = _by_shapes(parts, name)
        if config.name in MOCO_V3_VITS and name not in (None, config.name):
            raise UserError(f"it holds {config.name}, whose heads are not those of {name}")
        return arch if isinstance(arch, BackboneConfig) else replace(config, name=name or config.name)
    if isinstance(arch, BackboneConfig):
        return arch
    said = arch or beside.get("architecture") or saved.beside.get("arch")
    if not isinstance(said, str) or not (arch or timm.is_model(said)):
        raise UserError(
            f"names such as {some(parts.backbone)} do not tell the architecture: give it (arch=..., or backbone=timm "
            "backbone.name=... on the command line)"
        )
    return BackboneConfig(said)


def _by_shapes(parts: Parts, name: str | None) -> BackboneConfig:
    """The config that the shapes speak of; where they speak of none, that of ``name``."""
    if parts.layout is None:
        raise ValueError("without a layout shapes say nothing")
    named = {parts.layout.timm_name(each): value for each, value in parts.backbone.items()}
    try:
        config = parts.layout.config(named)
    except UserError:
        if name is None:
            raise
        return BackboneConfig(name)
    except KeyError as error:
        raise UserError(f"no weights for {error.args[0]}") from error
    except (IndexError, ValueError) as error:
        raise UserError("its weights have the shapes of no network that is known") from error
    if parts.format == "solo-learn" and config.stem == "small":
        config.stem = "small_padded"  # its stem for CIFAR pads by 2 pixels
    return config


def _hub_config(path: Path) -> dict[str, Any]:
    """What timm's ``config.json`` beside a file of the Hugging Face hub says."""
    config = path.with_name("config.json")
    if path.name not in ("model.safetensors", "pytorch_model.bin") or not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} beside it is not valid JSON") from error
    return found if isinstance(found, dict) else {}


def _preprocessing(beside: Mapping[str, Any], config: BackboneConfig) -> tuple[dict[str, Any], str]:
    said = beside.get("pretrained_cfg")
    if isinstance(said, Mapping) and {"mean", "std"} <= set(said):
        return {"mean": list(said["mean"]), "std": list(said["std"])}, "of config.json"
    if config.in_channels == 3:
        return {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}, "assumed: ImageNet's"
    return {}, "unknown"


def _told(saved: Saved, parts: Parts) -> dict[str, Any]:
    where = ".".join(filter(None, (saved.where, parts.prefix.rstrip(".")))) or "whole file"
    facts: dict[str, Any] = {"weights": where}
    facts |= {key: saved.beside[key] for key in TOLD if isinstance(saved.beside.get(key), (int, float, str))}
    if parts.ignored:
        facts["ignored"] = dict(parts.ignored)
    return facts


def mlp(weights: Mapping[str, Tensor]) -> MLP:
    """The expander or local projector that a head's state dict holds, as a module in evaluation mode.

    Raises:
        UserError: it is no such head (linear, norm and ReLU in turn, then a linear layer without bias).
    """
    linear = [name for name in weights if name.endswith(".weight") and weights[name].ndim == 2]
    linear.sort(key=lambda name: (len(name), name))
    norm = "batch" if any(name.endswith("running_mean") for name in weights) else "layer"
    if not linear:
        raise UserError(f"not a head of linear layers: its weights are {some(weights)}")
    head = MLP(weights[linear[0]].shape[1], [weights[name].shape[0] for name in linear], norm)
    require_complete(weights, head.state_dict(), f"a head of {len(linear)} linear layers")
    head.load_state_dict(weights)
    return head.eval()
