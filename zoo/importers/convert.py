"""Weights under the names of a backbone of this package, none missing and none left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import timm
import torch
from torch import Tensor

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.timm_backbone import TimmBackbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo.importers.formats import Parts, Weights, shared_prefixes, some
from ssl_toolkit.zoo.importers.known import FORMATS

COUNT = "num_batches_tracked"


def convert(parts: Parts, backbone: Backbone, what: str | None = None) -> tuple[Weights, dict[str, Weights]]:
    """The weights under the names of ``backbone``, and the classifier that the architecture has in timm.

    Args:
        what: what to call the network in an error.

    Raises:
        UserError: a weight is missing, left over or of another shape.
    """
    wanted = backbone.state_dict()
    inside = "model." if isinstance(backbone, TimmBackbone) else ""
    rename = parts.layout.timm_name if parts.layout is not None else _unprefixed(parts, wanted, inside)
    original: dict[str, str] = {}
    for name in parts.backbone:
        ours = inside + rename(name)
        if ours in original:
            raise UserError(f"{original[ours]} and {name} are the same weight")
        original[ours] = name
    left_over = {ours: name for ours, name in original.items() if ours not in wanted}
    on_top = _classifier(backbone) if left_over and FORMATS[parts.format].on_top else set()
    heads = {ours: parts.backbone[name] for ours, name in left_over.items() if ours in on_top}
    found = {ours: _shaped(name, parts.backbone[name]) for ours, name in original.items() if ours not in heads}
    counts = [name for name in wanted if name.endswith(COUNT)]
    if not any(name in found for name in counts):  # detectron2 and PyTorch before 0.4.1 have none; nothing reads them
        found.update({name: torch.tensor(0) for name in counts})
    require_complete(found, wanted, what or backbone.config.name, original, inside)
    return found, {"classifier": {n.removeprefix(inside): v for n, v in heads.items()}} if heads else {}


def _shaped(name: str, value: Tensor) -> Tensor:
    return value.flatten() if name.endswith("layer_scale") else value  # torchvision's is (C, 1, 1)


def _unprefixed(parts: Parts, wanted: Mapping[str, Tensor], inside: str) -> Callable[[str], str]:
    """What takes the beginning that all names share from a name; as little of it as leaves names that are wanted."""
    names = [parts.prefix + name for name in parts.backbone]
    prefixes = ["", *shared_prefixes(names)]
    fitting = (p for p in prefixes if any(inside + name.removeprefix(p) in wanted for name in names))
    prefix = next(fitting, parts.prefix)
    return lambda name: (parts.prefix + name).removeprefix(prefix)


def _classifier(backbone: Backbone) -> set[str]:
    """Names that timm's model has with its classifier, and our backbone has not, as ours would be."""
    if not timm.is_model(backbone.config.name):
        return set()
    with torch.device("meta"):
        whole = timm.create_model(backbone.config.name, pretrained=False)
    return {f"model.{name}" for name in whole.state_dict()} - set(backbone.state_dict())


def require_complete(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    what: str,
    original: Mapping[str, str] | None = None,
    prefix: str = "",
) -> None:
    """Hold weights to the names and shapes of a network.

    Args:
        original: what the weights were called in the file.
        prefix: of the network's names, not shown.

    Raises:
        UserError: naming the first that are left over or missing and how many there are, or one of another shape.
    """
    called = original or {}

    def shown(names: Iterable[str]) -> str:
        return some(sorted(called.get(name, name.removeprefix(prefix)) for name in names))

    left_over = [name for name in found if name not in wanted]
    missing = [name for name in wanted if name not in found]
    if left_over or missing:
        phrases = [f"unknown weights {shown(left_over)}"] if left_over else []
        phrases += [f"no weights for {shown(missing)}"] if missing else []
        raise UserError(f"not {what}: {'; '.join(phrases)}")
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise UserError(f"not {what}: {shown([name])} is {tuple(value.shape)}, not {tuple(wanted[name].shape)}")
        if value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all()):
            raise UserError(f"{shown([name])} is not finite: the checkpoint is of a run that failed")
