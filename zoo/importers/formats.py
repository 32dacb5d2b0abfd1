"""Who saved a checkpoint, read from its keys, and what of it is the backbone, a head, or neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo.importers.known import FORMATS, OURS
from ssl_toolkit.zoo.importers.layouts import Layout, layout_of

Weights = dict[str, Tensor]

WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
"""What DistributedDataParallel, torch.compile and Fabric put before every name."""

CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher", "net", "network", "state_dict_ema", "model_ema")
"""Keys under which checkpoints keep their state dict, the preferred first."""

LIGHTNING = "pytorch-lightning_version"


@dataclass(frozen=True)
class Saved:
    """A state dict and what was saved beside it.

    Attributes:
        weights: without the prefixes of `WRAPPERS`.
        where: the key of the checkpoint they lay under, None for a bare state dict.
        beside: the checkpoint's other keys and their values.
    """

    weights: Weights
    where: str | None
    beside: Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """The weights of a checkpoint, sorted.

    Attributes:
        layout: None where the names of the backbone are none that are known.
        backbone: under the names that follow ``prefix``.
        heads: state dicts by name.
        ignored: how many tensors were left out under which beginnings.
    """

    format: str
    prefix: str
    layout: Layout | None
    backbone: Weights
    heads: dict[str, Weights]
    ignored: dict[str, int]


def find_weights(tree: Any) -> Saved | None:
    """The state dict in what a checkpoint file holds, None where there is none."""
    if not isinstance(tree, Mapping):
        return None
    if _is_state_dict(tree):
        return Saved(_unwrapped(tree), None, {})
    both = all(
        _is_state_dict(tree.get(key)) for key in ("student", "teacher")
    )  # DINO, iBOT: the teacher is what counts
    for key in ("teacher", *CONTAINERS) if both else CONTAINERS:
        if _is_state_dict(tree.get(key)):
            return Saved(_unwrapped(tree[key]), key, {str(k): v for k, v in tree.items() if k != key})
    return None


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _unwrapped(weights: Mapping[str, Tensor]) -> Weights:
    """Without the prefixes of wrappers, where all names have them."""
    found = dict(weights)
    while True:
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            return found
        found = {name.removeprefix(prefix): value for name, value in found.items()}


def recognise(saved: Saved) -> str:
    """The format that the names speak of; where they speak of none ``timm``, whose networks have names of all kinds."""
    names, beside = saved.weights, saved.beside
    roots = {name.split(".", 1)[0] for name in names}
    if any(name.startswith("method.backbone.") for name in names):
        return OURS
    if "maps_projector" in roots:
        return "vicregl"
    if "base_encoder" in roots or ("encoder_q" in roots and "backbone" not in roots):
        return "moco"
    if {"encoder", "encoder_k"} <= roots:
        return "pixpro"
    if "student" in beside or "dino_loss" in beside or "ibot_loss" in beside:
        return "dino"
    if "backbone" in roots:
        return _with_backbone(names, roots, beside, saved.where)
    if "encoder" in roots and roots & {"projector", "classifier", "momentum_encoder"}:
        return "solo-learn"  # before its encoders were called backbones
    if roots & {"decoder_embed", "mask_token"}:
        return "mae"
    if "masked_embed" in roots:
        return "dino"
    layout = layout_of(names)
    if layout is not None:
        return layout.library
    return "lightning" if common_prefix(names) else "timm"


def _with_backbone(names: Weights, roots: set[str], beside: Mapping[str, Any], where: str | None) -> str:
    """The format of a checkpoint whose backbone is called so."""
    special = {
        "lightly": {root for root in _roots("lightly") if root not in ("head", "prototypes", "decoder", "criterion")},
        "stable-pretraining": {"callbacks_modules", "callbacks_metrics", "_callbacks_modules", "_callbacks_metrics"},
        "mmpretrain": _roots("mmpretrain") - {"head", "predictor", "queue", "queue_ptr"},
    }
    if any(name.startswith(("backbone.student.", "backbone.teacher.")) for name in names):
        return "stable-pretraining"
    if any(name.startswith(("backbone.vit.", "backbone.bottom_up.")) for name in names):
        return "lightly" if any(name.startswith("backbone.vit.") for name in names) else "detectron2"
    for name, telling in special.items():
        if roots & telling:
            return name
    if "meta" in beside or "message_hub" in beside:
        return "mmpretrain"
    if where == "model" and roots <= {"backbone", "projector", "classifier"}:
        return "vicregl" if "classifier" in roots else "vicreg"
    if roots == {"backbone"}:
        return "lightning"
    if roots == {"backbone", "head"} and LIGHTNING not in beside:
        return "dino"  # one of its two networks by itself
    # solo-learn trains a classifier beside every method; stable-pretraining's modules have the names they are given
    return "solo-learn" if roots & {"classifier", "momentum_backbone"} else "stable-pretraining"


def _roots(format_: str) -> set[str]:
    known = FORMATS[format_]
    found = {each.split(".", 1)[0] for each in (*known.heads, *known.ignored)}
    return found - {"backbone"}


def common_prefix(names: Mapping[str, Any]) -> str:
    """The beginning, up to a point, that all names share: that after which a layout is recognised, else the first."""
    prefixes = shared_prefixes(names)
    for prefix in prefixes:
        if layout_of({name.removeprefix(prefix): None for name in names}) is not None:
            return prefix
    return prefixes[0] if prefixes else ""


def shared_prefixes(names: Iterable[str]) -> list[str]:
    """The beginnings, each up to a point, that all names share, the shortest first."""
    found = list(names)
    first, last = min(found), max(found)  # what these share, all share
    ends = [place + 1 for place, letter in enumerate(first) if letter == "."]
    return [first[:end] for end in ends if last.startswith(first[:end])]


def sort_weights(saved: Saved, format_: str) -> Parts:
    """The parts of a checkpoint in ``format_``.

    Raises:
        UserError: there is no backbone, or there are names that the format does not know.
    """
    known, names = FORMATS[format_], saved.weights
    prefix = next((each for each in known.backbone if any(name.startswith(each) for name in names)), None)
    if prefix is None:
        raise UserError(f"no weights of a backbone ({' or '.join(known.backbone)}) are in it, only {some(names)}")
    if format_ == "lightning":
        prefix = common_prefix(names)
    backbone: Weights = {}
    heads: dict[str, Weights] = {}
    ignored: Counter[str] = Counter()
    rest = []
    for name, value in names.items():
        dropped = next((each for each in known.ignored if _belongs(name, each)), None)
        head = max((each for each in known.heads if name.startswith(each)), key=len, default=None)
        # a bare backbone has no prefix of its own, so that whatever is known comes first
        if dropped is not None:
            ignored[dropped.rstrip(".")] += 1
        elif head is not None:
            heads.setdefault(known.heads[head], {})[name.removeprefix(head)] = value
        elif name.startswith(prefix):
            backbone[name.removeprefix(prefix)] = value
        else:
            rest.append(name)
    if rest:
        raise UserError(f"unknown weights {some(rest)}")
    layout = layout_of(backbone)
    if layout is not None and known.on_top:
        for name in [name for name in backbone if name.startswith(layout.heads)]:
            root = next(each for each in layout.heads if name.startswith(each))
            heads.setdefault(root.rstrip("."), {})[name.removeprefix(root)] = backbone.pop(name)
    return Parts(format_, prefix, layout, backbone, heads, dict(ignored))


def _belongs(name: str, known: str) -> bool:
    return name.startswith(known) if known.endswith(".") else name == known


def some(names: Any, limit: int = 3) -> str:
    """The first of ``names``, and how many there are more."""
    found = list(names)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")
