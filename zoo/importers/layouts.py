"""How libraries name the weights of a network, and which network names and shapes mean.

Facts were read from the libraries' public sources (torchvision, timm, lightly, mmpretrain, detectron2, VICRegL).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import timm
import torch
from torch import Tensor

from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.errors import UserError

Weights = Mapping[str, Tensor]
Rule = tuple[str, str]

RESNETS = {
    (False, (2, 2, 2, 2), 64, 64, 64): "resnet18",
    (False, (3, 4, 6, 3), 64, 64, 64): "resnet34",
    (True, (3, 4, 6, 3), 64, 64, 64): "resnet50",
    (True, (3, 4, 23, 3), 64, 64, 64): "resnet101",
    (True, (3, 8, 36, 3), 64, 64, 64): "resnet152",
    (True, (3, 4, 6, 3), 64, 128, 128): "wide_resnet50_2",
    (True, (3, 4, 23, 3), 64, 128, 128): "wide_resnet101_2",
    (True, (3, 4, 6, 3), 64, 128, 4): "resnext50_32x4d",
    (True, (3, 4, 23, 3), 64, 256, 8): "resnext101_32x8d",
    (True, (3, 4, 23, 3), 64, 256, 4): "resnext101_64x4d",
    (True, (3, 4, 6, 3), 128, 128, 128): "resnet50x2",
    (True, (3, 24, 36, 3), 128, 128, 128): "resnet200x2",
}
"""Bottlenecks, blocks of each stage, channels of the stem, of the first block, and those each filter of it sees."""

CONVNEXTS = {
    ((2, 2, 6, 2), 40): "convnext_atto",
    ((2, 2, 6, 2), 48): "convnext_femto",
    ((2, 2, 6, 2), 64): "convnext_pico",
    ((2, 2, 8, 2), 80): "convnext_nano",
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
    ((3, 3, 27, 3), 256): "convnext_xlarge",
}
"""Blocks of each stage and channels of the first."""

VICREGL_CONVNEXTS = {
    ((1, 1, 2, 1), 24): "vicregl_convnext_mini",
    ((3, 3, 27, 3), 96): "vicregl_convnext_small",
    ((3, 3, 27, 3), 128): "vicregl_convnext_base",
    ((3, 3, 27, 3), 256): "vicregl_convnext_xlarge",
}
"""Those without layer scale."""

VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
"""Channels and blocks."""

MOCO_V3_VITS = {192: "moco_v3_vit_tiny", 384: "moco_v3_vit_small"}


@dataclass(frozen=True)
class Layout:
    """One way to name the weights of a kind of network.

    Attributes:
        library: who names them so.
        signature: names of which all are there.
        rules: patterns at the beginning of a name, and what stands there in timm; the first that fits is applied.
        heads: beginnings of names that belong to a classifier or projector on top.
        config: the network that weights under timm's names belong to.
    """

    library: str
    signature: tuple[str, ...]
    config: Callable[[Weights], BackboneConfig]
    rules: tuple[Rule, ...] = ()
    heads: tuple[str, ...] = ()

    def timm_name(self, name: str) -> str:
        """timm's name of a weight; one that no rule knows keeps its own."""
        for pattern, replacement in self.rules:
            found = re.match(pattern, name)
            if found:
                return found.expand(replacement) + name[found.end() :]
        return name


def _blocks(weights: Weights, pattern: str) -> tuple[int, ...]:
    """How many blocks each stage has; ``pattern`` finds the numbers of stage and block in a name."""
    numbers: dict[int, set[int]] = {}
    for name in weights:
        found = re.match(pattern, name)
        if found:
            numbers.setdefault(int(found[1]), set()).add(int(found[2]))
    return tuple(len(numbers[stage]) for stage in sorted(numbers))


def _known(table: Mapping[tuple, str], key: tuple, what: str) -> str:
    if key not in table:
        raise UserError(f"{what} is none that is known by its shapes: name its architecture")
    return table[key]


def _resnet(weights: Weights) -> BackboneConfig:
    stem, first, second = (weights[f"{name}.weight"] for name in ("conv1", "layer1.0.conv1", "layer1.0.conv2"))
    blocks = _blocks(weights, r"layer(\d)\.(\d+)\.conv1\.weight")
    bottleneck = "layer1.0.conv3.weight" in weights
    key = (bottleneck, blocks, stem.shape[0], first.shape[0], second.shape[1])
    name = _known(RESNETS, key, f"a ResNet with {blocks} blocks, {stem.shape[0]} and {first.shape[0]} channels")
    return BackboneConfig(name, int(stem.shape[1]), stem="small" if stem.shape[-1] == 3 else "imagenet")


def _without_relu(weights: Weights) -> BackboneConfig:
    """Refuse what lightly's CIFAR benchmarks train: its own ResNet has no ReLU among its children, and a Sequential of
    them leaves out the first."""
    raise UserError(
        "a Sequential of the children of lightly's own ResNet has no ReLU in its stem; no network here is so"
    )


def _convnext(weights: Weights) -> BackboneConfig:
    stem = weights["stem.0.weight"]
    key = (_blocks(weights, r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.weight"), int(stem.shape[0]))
    scaled = "stages.0.blocks.0.gamma" in weights
    table = CONVNEXTS if scaled else VICREGL_CONVNEXTS
    kind = "a ConvNeXt" if scaled else "a ConvNeXt without layer scale"
    return BackboneConfig(_known(table, key, f"{kind} with {key[0]} blocks and {key[1]} channels"), int(stem.shape[1]))


def _vit(weights: Weights) -> BackboneConfig:
    patches, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
    width, patch = int(patches.shape[0]), int(patches.shape[-1])
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    size = VITS.get((width, depth))
    name = f"vit_{size}_patch{patch}_224"
    cells = int(positions.shape[1]) - 1
    side = math.isqrt(max(cells, 0))
    if size is None or positions.ndim != 3 or side == 0 or side * side != cells:
        raise UserError(
            f"a ViT with {depth} blocks, {width} channels and {positions.shape[1]} positions is none that is known by "
            "its shapes: name its architecture"
        )
    if patch == 16 and width in MOCO_V3_VITS and _fixed_positions(positions[0], side):
        name = MOCO_V3_VITS[width]
    elif not timm.is_model(name):
        raise UserError(f"a ViT of size {size} with patches of {patch} pixels is none of timm's: name its architecture")
    return BackboneConfig(name, int(patches.shape[1]), image_size=side * patch)


def _fixed_positions(positions: Tensor, side: int) -> bool:
    """Whether ``(1 + side * side, D)`` are MoCo v3's position embeddings, which are computed and not learned.

    It is how its ViTs are told from others: their 12 heads show in no shape.
    """
    quarter = positions.shape[1] // 4
    if side * side > 4096 or positions.is_meta or bool(positions[0].any()):
        return False
    frequency = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    down, right = place.repeat_interleave(side, 0), place.repeat(side, 1)
    expected = torch.cat((down.sin(), down.cos(), right.sin(), right.cos()), dim=1)
    return bool(torch.allclose(positions[1:].double(), expected, rtol=0, atol=1e-2))


TORCHVISION_CONVNEXT: tuple[Rule, ...] = (
    (r"features\.0\.(\d)\.", r"stem.\1."),
    *((rf"features\.{2 * stage}\.(\d)\.", rf"stages.{stage}.downsample.\1.") for stage in range(1, 4)),
    *(
        rule
        for stage in range(4)
        for rule in (
            (rf"features\.{2 * stage + 1}\.(\d+)\.block\.0\.", rf"stages.{stage}.blocks.\1.conv_dw."),
            (rf"features\.{2 * stage + 1}\.(\d+)\.block\.2\.", rf"stages.{stage}.blocks.\1.norm."),
            (rf"features\.{2 * stage + 1}\.(\d+)\.block\.3\.", rf"stages.{stage}.blocks.\1.mlp.fc1."),
            (rf"features\.{2 * stage + 1}\.(\d+)\.block\.5\.", rf"stages.{stage}.blocks.\1.mlp.fc2."),
            (rf"features\.{2 * stage + 1}\.(\d+)\.layer_scale$", rf"stages.{stage}.blocks.\1.gamma"),
        )
    ),
    (r"classifier\.0\.", "head.norm."),
)

VICREGL_CONVNEXT: tuple[Rule, ...] = (
    (r"downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"stages\.(\d)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d)\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"stages\.(\d)\.(\d+)\.pwconv1\.", r"stages.\1.blocks.\2.mlp.fc1."),
    (r"stages\.(\d)\.(\d+)\.pwconv2\.", r"stages.\1.blocks.\2.mlp.fc2."),
    (r"norm\.", "norm_pre."),
)

MM_CONVNEXT: tuple[Rule, ...] = (
    *VICREGL_CONVNEXT[:2],
    (r"stages\.(\d)\.(\d+)\.depthwise_conv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d)\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"stages\.(\d)\.(\d+)\.pointwise_conv1\.", r"stages.\1.blocks.\2.mlp.fc1."),
    (r"stages\.(\d)\.(\d+)\.pointwise_conv2\.", r"stages.\1.blocks.\2.mlp.fc2."),
    (r"stages\.(\d)\.(\d+)\.gamma$", r"stages.\1.blocks.\2.gamma"),
)

MM_VIT: tuple[Rule, ...] = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.(?:ln|norm)([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
    (r"(?:ln1|norm1)\.", "norm."),
)

DETECTRON2: tuple[Rule, ...] = (
    (r"stem\.conv1\.norm\.", "bn1."),
    (r"stem\.conv1\.", "conv1."),
    *(
        rule
        for stage in range(1, 5)
        for rule in (
            (rf"res{stage + 1}\.(\d+)\.conv(\d)\.norm\.", rf"layer{stage}.\1.bn\2."),
            (rf"res{stage + 1}\.(\d+)\.conv(\d)\.", rf"layer{stage}.\1.conv\2."),
            (rf"res{stage + 1}\.(\d+)\.shortcut\.norm\.", rf"layer{stage}.\1.downsample.1."),
            (rf"res{stage + 1}\.(\d+)\.shortcut\.", rf"layer{stage}.\1.downsample.0."),
        )
    ),
)

TORCHVISION_CHILDREN: tuple[Rule, ...] = (
    (r"0\.", "conv1."),
    (r"1\.", "bn1."),
    *((rf"{3 + stage}\.", f"layer{stage}.") for stage in range(1, 5)),
)
"""Of ``nn.Sequential(*list(resnet.children())[:-1])``, which is lightly's way to drop a classifier."""


RESNET_LAYOUT = Layout(
    "torchvision",
    ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"),
    _resnet,
    ((r"layer(\d)\.(\d+)\.shortcut\.", r"layer\1.\2.downsample."),),  # lightly's own ResNet
    ("fc.", "linear."),
)

OFFICIAL_CONVNEXT_LAYOUT = Layout(
    "vicregl", ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"), _convnext, VICREGL_CONVNEXT
)

LAYOUTS = (
    RESNET_LAYOUT,
    Layout("lightly", ("0.weight", "1.running_mean", "7.0.conv1.weight"), _resnet, TORCHVISION_CHILDREN),
    Layout("lightly", ("0.weight", "1.running_mean", "2.0.conv1.weight"), _without_relu),
    Layout(
        "torchvision",
        ("features.0.0.weight", "features.1.0.block.0.weight"),
        _convnext,
        TORCHVISION_CONVNEXT,
        ("classifier.2.",),
    ),
    Layout("timm", ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"), _convnext, (), ("head.fc.",)),
    OFFICIAL_CONVNEXT_LAYOUT,
    Layout(
        "mmpretrain",
        ("downsample_layers.0.0.weight", "stages.0.0.depthwise_conv.weight", "stages.0.0.gamma"),
        _convnext,
        (*MM_CONVNEXT, (r"norm3\.", "head.norm.")),
    ),
    Layout(
        "mmpretrain",
        ("downsample_layers.0.0.weight", "stages.0.0.depthwise_conv.weight"),
        _convnext,
        (*MM_CONVNEXT, (r"norm3\.", "norm_pre.")),
    ),
    Layout("timm", ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"), _vit, (), ("head.",)),
    Layout("mmpretrain", ("patch_embed.projection.weight", "pos_embed", "layers.0.attn.qkv.weight"), _vit, MM_VIT),
    Layout("detectron2", ("stem.conv1.weight", "res2.0.conv1.weight"), _resnet, DETECTRON2),
)


def layout_of(names: Mapping[str, object]) -> Layout | None:
    """The layout that weights of these names have, None where it is none of `LAYOUTS`."""
    return next((layout for layout in LAYOUTS if all(name in names for name in layout.signature)), None)
