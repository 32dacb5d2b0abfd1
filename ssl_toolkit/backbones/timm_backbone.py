"""Any timm model with feature maps as a `Backbone`."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.layers.norm import LayerNorm2d, RmsNorm2d, SimpleNorm2d
from timm.models.resnet import ResNet
from timm.models.vgg import VGG
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.backbones.probe import reason, shape_twin
from ssl_toolkit.errors import UserError

PYRAMID_LEVELS = 4
NORMS_2D = (LayerNorm2d, RmsNorm2d, SimpleNorm2d, nn.BatchNorm2d)


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    ``maps`` is what the model's ``forward_features`` gives, as ``(B, C, H, W)``; a ViT's are the patch tokens
    of its last block after the final norm, without class and register tokens. ``pooled`` is the mean of
    ``maps``, then the norm that the architecture applies after pooling where it has one (ConvNeXt's head
    norm, the ``fc_norm`` of some ViTs). `stages` gives the last four levels of a hierarchical network, or
    four evenly spaced blocks of one that keeps one resolution, each after the final norm.

    The weights lie under ``model.`` with timm's names. Those that neither output depends on (the convolution
    that MobileNetV3 applies after pooling, attention pooling) are frozen: DistributedDataParallel would wait
    for their gradients.

    Args:
        config: what ``model`` was made from.
        model: made with ``num_classes=0``.

    Raises:
        UserError: the model gives no feature maps.
    """

    model: Any  # an nn.Module; which methods a timm model has, its type does not say

    def __init__(self, config: BackboneConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model = model
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        self.norm = "batch" if batch_norm else "layer"
        self._levels: list[int] = []
        self._layout = ""
        self._final_norm = True
        try:
            self._inspect()
        except Exception as error:  # timm's models without maps fail in as many ways as there are models
            raise UserError(
                f"timm model {config.name!r} has no usable feature maps ({reason(error)}): choose another one"
            ) from error

    @torch.enable_grad()  # a backbone may be made where gradients are off
    def _inspect(self) -> None:
        """Set the layout of the maps, the pyramid's levels and the channels, by shapes alone."""
        size = self.config.image_size or int(self.model.pretrained_cfg["input_size"][-1])
        image = torch.empty(1, self.config.in_channels, size, size, device="meta")
        twin = shape_twin(self.model)
        self._levels = _pyramid_levels(self.model)
        with torch.no_grad():
            self._layout = _layout(twin.forward_features(image))
            try:
                stages = self._intermediates(twin, image, self._levels)
            except AssertionError:  # Hiera says that it has no norm for its maps
                self._final_norm = False
                stages = self._intermediates(twin, image, self._levels)
        self.stage_channels = tuple(int(stage.shape[1]) for stage in stages)

        this = shape_twin(self)
        features = this(image)
        self.num_features = int(features.maps.shape[1])
        if features.pooled.shape != (1, self.num_features):
            raise ValueError(f"pooled is {tuple(features.pooled.shape)} for {self.num_features} channels")
        names, weights = zip(*((n, p) for n, p in this.named_parameters() if p.requires_grad))
        total = features.maps.sum() + features.pooled.sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        for name, gradient in zip(names, gradients):
            if gradient is None:
                self.get_parameter(name).requires_grad_(False)

    def _intermediates(self, model: Any, images: Tensor, levels: list[int]) -> list[Tensor]:
        return model.forward_intermediates(
            images, indices=levels, norm=self._final_norm, output_fmt="NCHW", intermediates_only=True
        )

    def _pool(self, maps: Tensor) -> Tensor:
        pooled = maps.mean((2, 3))
        norm = _head_norm(self.model, maps.shape[1])
        if norm is None:
            return pooled
        return norm(pooled[..., None, None]).flatten(1) if isinstance(norm, NORMS_2D) else norm(pooled)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The pyramid, from fine to coarse; the last is ``maps`` unless a further convolution makes those."""
        return self._intermediates(self.model, images, self._levels)

    def forward(self, images: Tensor) -> Features:
        """Features of ``images``, whose sides need to suit the network (`map_size` says which do)."""
        if self._layout == "tokens":
            maps = self._intermediates(self.model, images, self._levels[-1:])[0]
        else:
            maps = self._channels_first(self.model.forward_features(images))
        return Features(maps, self._pool(maps))

    def forward_stages(self, images: Tensor) -> tuple[Features, list[Tensor]]:
        """Both from one pass."""
        output, stages = self.model.forward_intermediates(
            images, indices=self._levels, norm=self._final_norm, output_fmt="NCHW"
        )
        maps = stages[-1] if self._layout == "tokens" else self._channels_first(output)
        return Features(maps, self._pool(maps)), stages

    def _channels_first(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 3, 1, 2) if self._layout == "NHWC" else maps


def _layout(output: Any) -> str:
    """``NCHW``, ``NHWC`` or ``tokens``, read off the output for a square image."""
    if isinstance(output, Tensor) and output.ndim == 3:
        return "tokens"
    if isinstance(output, Tensor) and output.ndim == 4:
        if output.shape[2] == output.shape[3]:
            return "NCHW"
        if output.shape[1] == output.shape[2]:
            return "NHWC"
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(f"its features are {shape}")


def _pyramid_levels(model: Any) -> list[int]:
    """Which of the model's feature levels make the pyramid, the last of all included."""
    reductions = [level["reduction"] for level in model.feature_info]
    count = len(reductions)
    if len(set(reductions)) > 1:
        return list(range(count))[-PYRAMID_LEVELS:]
    wanted = min(PYRAMID_LEVELS, count)
    return [round((i + 1) * count / wanted) - 1 for i in range(wanted)]


def _head_norm(model: nn.Module, channels: int) -> nn.Module | None:
    """The norm that the architecture applies after pooling, if it has one."""
    for norm in (getattr(getattr(model, "head", None), "norm", None), getattr(model, "fc_norm", None)):
        weight = getattr(norm, "weight", None)
        if isinstance(norm, nn.Module) and isinstance(weight, Tensor) and weight.shape == (channels,):
            return norm
    return None


def timm_model(config: BackboneConfig, name: str | None = None, **options: Any) -> nn.Module:
    """The timm model ``name`` (``config.name`` by default) without classifier and with fresh weights.

    Args:
        options: further arguments, all of which the architecture has to know.

    Raises:
        UserError: timm cannot build it, it has no stochastic depth though ``drop_path`` is set, or it has no
            stem that ``stem=small`` could replace.
    """
    # A ViT whose position embeddings follow the image takes the small views of multi-crop too.
    optional: dict[str, Any] = {"dynamic_img_size": True}
    if config.image_size is not None:
        optional["img_size"] = config.image_size
    if config.drop_path > 0:
        optional["drop_path_rate"] = config.drop_path
    required = {"in_chans": config.in_channels, "num_classes": 0, **options}
    try:
        model = _create(name or config.name, required, optional)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(f"timm cannot build backbone {config.as_dict()}: {reason(error)}") from error
    if config.drop_path > 0 and not any(isinstance(m, DropPath) and m.drop_prob for m in model.modules()):
        raise UserError(f"{config.name} has no stochastic depth: set backbone.drop_path=0")
    if config.stem != "imagenet":
        _make_stem_small(config, model)
    if isinstance(model, VGG):
        model.pre_logits = nn.Identity()  # type: ignore[assignment]  # a hundred million weights that only a classifier uses
    return model


def _create(name: str, required: dict[str, Any], optional: dict[str, Any]) -> nn.Module:
    """Build the model, without those of ``optional`` that its architecture does not know."""
    kept = dict(optional)
    while True:
        try:
            return timm.create_model(name, pretrained=False, **required, **kept)
        except TypeError as error:
            refused = [key for key in kept if f"'{key}'" in str(error)]
            if not refused:
                raise
            for key in refused:
                del kept[key]


def _make_stem_small(config: BackboneConfig, model: nn.Module) -> None:
    """A 3x3 stride-1 convolution for the 7x7 stride-2 one, and no max-pooling (SimCLR, appendix B.9)."""
    if not isinstance(model, ResNet) or not isinstance(model.conv1, nn.Conv2d):
        raise UserError(f"backbone.stem={config.stem} is for ResNets with a 7x7 stem (resnet18), not {config.name}")
    padding = 2 if config.stem == "small_padded" else 1
    conv = nn.Conv2d(config.in_channels, model.conv1.out_channels, 3, stride=1, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = conv  # type: ignore[assignment]
    model.maxpool = nn.Identity()  # type: ignore[assignment]
