"""What is trained: heads on the maps of a backbone, and BatchNorm over the batch of all processes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.timm_backbone import TimmBackbone, timm_model
from ssl_toolkit.criteria.distributed import world_size
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.heads import Heads
from ssl_toolkit.evaluation.segmentation.pixels import cell_logits

FCN_CHANNELS = 512


class _SumOverRanks(torch.autograd.Function):
    """Adds up over the processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of the batch of all processes, which may have unequal parts of
    it; on any device. The gradient is that of the sum of the losses of the processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        values = x.float().transpose(0, 1).flatten(1)
        own = torch.cat([values.sum(1), values.new_tensor([values.shape[1]])])
        sums = _SumOverRanks.apply(own)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean[:, None]
        var = _SumOverRanks.apply(centred.square().sum(1)) / count
        self._track(mean.detach(), var.detach() * count / (count - 1).clamp_min(1))
        normal = (centred * (var + self.eps).rsqrt()[:, None]).view(x.shape[1], x.shape[0], *x.shape[2:])
        normal = normal.transpose(0, 1)
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return normal.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


def use_global_norms(module: nn.Module) -> None:
    """Replace every plain ``BatchNorm2d`` inside by a `GlobalBatchNorm2d` of the same state."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            norm = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm.train(child.training))
        else:
            use_global_norms(child)


def keep_channels(levels: Sequence[Tensor], seeds: Tensor, rate: float) -> list[Tensor]:
    """Dropout of whole channels of the joined ``levels``, each ``(B, C_i, H_i, W_i)``: each image's by its seed."""
    sizes = [maps.shape[1] for maps in levels]
    drawn = np.stack([np.random.default_rng(seed).random(sum(sizes)) for seed in seeds.tolist()])
    kept = torch.from_numpy((drawn >= rate).astype(np.float32) / (1 - rate)).to(levels[0].device, non_blocking=True)
    return [maps * part[:, :, None, None].to(maps.dtype) for maps, part in zip(levels, torch.split(kept, sizes, 1))]


class LinearHeads(nn.Module):
    """L linear heads on joined maps behind one normalisation that all share.

    Args:
        count: L.
        channels: of each level of the maps.
        classes: K.
        norm: normalise every channel by BatchNorm without weights, each level on its own grid.
        dropout: rate of dropped channels.
    """

    def __init__(self, count: int, channels: Sequence[int], classes: int, norm: bool, dropout: float) -> None:
        super().__init__()
        self.heads = Heads(count, sum(channels), classes)
        self.norms = nn.ModuleList(GlobalBatchNorm2d(c, affine=False) if norm else nn.Identity() for c in channels)
        self.dropout = dropout

    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each head."""
        return [list(pair) for pair in zip(self.heads.weights, self.heads.biases)]

    def forward(self, levels: Sequence[Tensor], seeds: Tensor | None = None) -> Tensor:
        """``(B, C_i, H_i, W_i)`` from fine to coarse, and a seed for each image in training, to ``(K, L, B, H, W)``."""
        normal = [norm(maps.float()) for norm, maps in zip(self.norms, levels)]
        if self.training and self.dropout and seeds is not None:
            normal = keep_channels(normal, seeds, self.dropout)
        return cell_logits(self.heads, normal)


class FcnHead(nn.Module):
    """Two 3x3 convolutions of 512 channels, a third on their output joined with the input, and a 1x1 classifier (Long
    et al. 2015, in the form of mmsegmentation: each convolution with BatchNorm and ReLU)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        hidden = FCN_CHANNELS
        self.convs = nn.Sequential(_conv(channels, hidden), _conv(hidden, hidden))
        self.join = _conv(channels + hidden, hidden)
        self.classifier = nn.Conv2d(hidden, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor, seeds: Tensor | None, dropout: float) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, K, H, W)``; ``seeds`` drop channels before the classifier."""
        hidden = self.join(torch.cat([maps, self.convs(maps)], 1))
        if seeds is not None and dropout:
            hidden = keep_channels([hidden], seeds, dropout)[0]
        logits: Tensor = self.classifier(hidden)
        return logits


def _conv(inside: int, outside: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, GlobalBatchNorm2d(outside), nn.ReLU(inplace=True))


class FcnHeads(nn.Module):
    """L `FcnHead` that start alike, side by side."""

    def __init__(self, count: int, channels: Sequence[int], classes: int, dropout: float) -> None:
        super().__init__()
        first = FcnHead(sum(channels), classes)
        self.heads = nn.ModuleList(copy.deepcopy(first) for _ in range(count))
        self.dropout = dropout

    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each head."""
        return [list(head.parameters()) for head in self.heads]

    def forward(self, levels: Sequence[Tensor], seeds: Tensor | None = None) -> Tensor:
        """As `LinearHeads`; here the joined map is built."""
        size = levels[0].shape[2:]
        maps = torch.cat(
            [F.interpolate(x, size=size, mode="bilinear") if x.shape[2:] != size else x for x in levels], 1
        )
        seeds = seeds if self.training else None
        return torch.stack([head(maps, seeds, self.dropout).transpose(0, 1) for head in self.heads], 1).float()


class Segmenter(nn.Module):
    """A backbone and heads.

    Args:
        stages: whether the heads work on the backbone's stages, else on its last map.
        frozen: the backbone stays in evaluation mode and gets no gradient.
        precision: bfloat16 runs backbone and FCN heads in autocast, float32 does not. Linear heads are in float32.
    """

    def __init__(
        self, backbone: Backbone, heads: LinearHeads | FcnHeads, stages: bool, frozen: bool, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads
        self.stages, self.frozen, self.precision = stages, frozen, precision
        if frozen:
            backbone.requires_grad_(False)
        else:
            use_global_norms(backbone)

    @property
    def trained(self) -> nn.Module:
        """What has to be kept: the heads, or everything."""
        return self.heads if self.frozen else self

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Normalised ``(B, C, H, W)`` to logits ``(K, L, B, h, w)`` on the grid of the finest map."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                levels = self.backbone.stages(images) if self.stages else [self.backbone(images).maps]
            if isinstance(self.heads, FcnHeads):
                return self.heads(levels, seeds)
        logits: Tensor = self.heads(levels, seeds)
        return logits


def _is_resnet(backbone: Backbone) -> bool:
    own_stem = backbone.config.stem == "imagenet"
    return isinstance(backbone, TimmBackbone) and isinstance(backbone.model, ResNet) and own_stem


def default_output_stride(backbone: Backbone) -> int | None:
    """16 for timm's ResNets, whose last map of an image of 512 pixels the paper gives as 32x32; None elsewhere."""
    return 16 if _is_resnet(backbone) else None


def own_backbone(backbone: Backbone, output_stride: int | None) -> Backbone:
    """A copy with the same weights whose last stages are dilated instead of strided, so that ``output_stride`` pixels
    (8, 16 or 32) make a cell; None keeps the architecture's own stride.

    Raises:
        UserError: not a timm ResNet with the 7x7 stem.
    """
    if output_stride is None:
        return copy.deepcopy(backbone)
    if not _is_resnet(backbone):
        raise UserError(
            f"output_stride={output_stride} is for timm ResNets with their 7x7 stem, not {backbone.config.name}"
        )
    dilated = TimmBackbone(backbone.config, timm_model(backbone.config, output_stride=output_stride))
    dilated.load_state_dict(backbone.state_dict())
    return dilated
