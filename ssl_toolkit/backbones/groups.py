"""Parameters in groups: which decay, and which learn at what share of the rate."""

from __future__ import annotations

from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

from ssl_toolkit.backbones.base import Backbone

Groups = list[dict[str, Any]]

_HEAD = "head outside the backbone"


def parameter_groups(module: nn.Module, weight_decay: float, lr: float, layer_decay: float = 1.0) -> Groups:
    """The trained parameters of ``module``, in groups as an optimizer takes them.

    Weights decay. Biases and norms (whatever has one dimension) do not, nor do the parameters that a timm model says
    must not, such as a ViT's position embeddings.

    With ``layer_decay`` below 1 each layer of the backbone learns ``layer_decay`` times as fast as the one after it,
    the last one as much slower than the heads (BEiT; the numbering is timm's).

    Args:
        lr: of the heads, and of all where ``layer_decay`` is 1.

    Returns:
        Groups with ``lr``, ``weight_decay`` and ``decays``, the fastest first.
    """
    layers = layer_numbers(module)
    last = max(layers.values(), default=0)
    exempt = _exempt(module)
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            above = last - layers[name] if layer_decay != 1 else 0
            found.setdefault((above, parameter.ndim > 1 and name not in exempt), []).append(parameter)
    return [
        {
            "params": found[above, decays],
            "lr": lr * layer_decay**above,
            "weight_decay": weight_decay if decays else 0.0,
            "decays": decays,
        }
        for above, decays in sorted(found, key=lambda key: (key[0], not key[1]))
    ]


def layer_numbers(module: nn.Module) -> dict[str, int]:
    """The number of the layer each parameter belongs to, the stem's 0; what is outside the backbone is the last one.

    timm's models number their own layers (each residual block or transformer block is one, a final norm belongs to
    the last). Elsewhere a layer is a child of the backbone, or an item of a list among them.
    """
    names = [name for name, _ in module.named_parameters()]
    prefix, backbone = _backbone(module)
    if backbone is None:
        return dict.fromkeys(names, 0)
    inside = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    numbers = _timm_numbers(backbone) or _child_numbers(backbone)
    last = numbers[_HEAD]
    return {name: numbers[inside[name]] if name in inside else last for name in names}


def _backbone(module: nn.Module) -> tuple[str, Backbone | None]:
    """The first backbone in ``module``, and what its parameters' names begin with."""
    for name, child in module.named_modules():
        if isinstance(child, Backbone):
            return f"{name}." if name else "", child
    return "", None


def _timm_numbers(backbone: Backbone) -> dict[str, int]:
    model: Any = getattr(backbone, "model", None)
    if not hasattr(model, "group_matcher"):
        return {}
    names = [name for name, _ in model.named_parameters()]
    numbers = group_with_matcher(
        ((name, None) for name in [*names, _HEAD]), model.group_matcher(coarse=False), reverse=True
    )
    return {name if name == _HEAD else f"model.{name}": number for name, number in numbers.items()}


def _child_numbers(backbone: Backbone) -> dict[str, int]:
    layers: list[tuple[str, nn.Module]] = []
    for name, child in backbone.named_children():
        if isinstance(child, nn.ModuleList):
            layers += [(f"{name}.{number}", item) for number, item in child.named_children()]
        else:
            layers.append((name, child))
    numbers = {
        f"{layer}.{name}": number
        for number, (layer, child) in enumerate(layers)
        for name, _ in child.named_parameters()
    }
    numbers |= {name: 0 for name, _ in backbone.named_parameters(recurse=False)}
    return {**numbers, _HEAD: len(layers)}


def _exempt(module: nn.Module) -> set[str]:
    """Names of parameters that a timm model says must not decay."""
    prefix, backbone = _backbone(module)
    model: Any = getattr(backbone, "model", None)
    names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return {f"{prefix}model.{name}" for name in names}
