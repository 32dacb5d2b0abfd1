"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) from torchvision around a backbone of this package.

``c4`` is the detector of MoCo and DenseCL (Detectron2's R50-C4): proposals and RoIAlign on the map of stage 3, and
stage 4 as the head of each box. ``fpn`` has a feature pyramid (Lin et al. 2017) over the stages and two fully connected
layers as head.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.probe import shape_twin
from ssl_toolkit.backbones.tiny_resnet import TinyResNet
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.predicting import Found
from ssl_toolkit.evaluation.detection.samples import Example
from ssl_toolkit.evaluation.features import Preparation
from ssl_toolkit.evaluation.live import joined

RATIOS = (0.5, 1.0, 2.0)
FINEST_STRIDE = 4
"""Of the levels of a pyramid; a finer stage would cost most of the time, and ResNets have none."""

PROBE = 256
"""Side of the image whose maps tell the strides."""

C4_ANCHORS, FPN_ANCHORS = (2, 4, 8, 16, 32), 8
"""Sides of anchors in strides: 32 to 512 pixels for a ResNet, as in Detectron2."""


@dataclass(frozen=True)
class Design:
    """What a detector is made of besides its backbone.

    Attributes:
        neck: ``c4`` or ``fpn``.
        anchors: sides of the anchors in pixels, all of them in each cell (c4) or one for each level (fpn); None for the
            usual ones.
        extra_norm: a BatchNorm behind stage 4, as MoCo has it (c4).
        channels: of the levels of the pyramid (fpn).
        hidden: channels of the two fully connected layers (fpn).
        proposals_train, proposals_test: kept for each image; before they are compared with each other as many of each
            level (fpn) or six times as many (c4).
        rois: proposals of an image that the head is trained on.
        masks: a branch that predicts the mask of each object (fpn): 14x14 cells of its box, four convolutions and a
            deconvolution, all of ``channels`` channels.
    """

    neck: str
    anchors: tuple[int, ...] | None = None
    extra_norm: bool = True
    channels: int = 256
    hidden: int = 1024
    proposals_train: int = 2000
    proposals_test: int = 1000
    rois: int = 512
    masks: bool = False


class AsItIs(GeneralizedRCNNTransform):
    """Normalises and pads; images come in the size that they are to have."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Boxes as they are; masks as parts of their boxes, since `find` pastes them at the size of the image."""
        return result


class Trunk(nn.Module):
    """A ResNet up to stage 3: ``(B, C, H, W)`` to its one map."""

    def __init__(self, layers: nn.Sequential, out_channels: int) -> None:
        super().__init__()
        self.layers, self.out_channels = layers, out_channels

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class LastStage(nn.Module):
    """Stage 4 of a ResNet on RoIs of 14x14 cells, and the mean of what it gives: ``(R, C, 14, 14)`` to ``(R, D)``."""

    def __init__(self, stage: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.stage, self.norm = stage, norm

    def forward(self, regions: Tensor) -> Tensor:
        return self.norm(self.stage(regions)).mean((2, 3))


class Pyramid(nn.Module):
    """A feature pyramid over ``levels`` of the stages of a backbone, and a coarser one by pooling."""

    def __init__(self, backbone: Backbone, levels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.backbone, self.levels, self.out_channels = backbone, list(levels), out_channels
        inputs = [backbone.stage_channels[level] for level in levels]
        self.fpn = FeaturePyramidNetwork(inputs, out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.backbone.stages(images)
        return self.fpn(OrderedDict((str(i), stages[level]) for i, level in enumerate(self.levels)))


def stage_strides(backbone: Backbone) -> list[int]:
    """Pixels that a cell of each stage covers.

    Raises:
        UserError: the backbone has no stages for images of `PROBE` pixels.
    """
    image = torch.empty(1, backbone.config.in_channels, PROBE, PROBE, device="meta")
    try:
        with torch.no_grad():
            stages = shape_twin(backbone).stages(image)
    except Exception as error:  # networks refuse a size by assertions, shape errors and much else
        raise UserError(f"{backbone.config.name} gives no stages: detection_finetune cannot use it") from error
    return [PROBE // int(stage.shape[2]) for stage in stages]


def pyramid_levels(backbone: Backbone) -> dict[int, int]:
    """Which stages make the pyramid, with their strides: of each stride the last, from `FINEST_STRIDE` on.

    Raises:
        UserError: the stages have one resolution, as those of a ViT.
    """
    strides = stage_strides(backbone)
    levels = sorted({stride: i for i, stride in enumerate(strides) if stride >= FINEST_STRIDE}.values())
    if len(levels) < 2:
        raise UserError(
            f"detection_finetune needs maps of several resolutions, {backbone.config.name} has one "
            f"(stride {strides[-1]}): evaluate it with detection, or take a ResNet or ConvNeXt"
        )
    return {level: strides[level] for level in levels}


def split_stages(backbone: Backbone) -> tuple[nn.Sequential, nn.Module, int, int]:
    """A ResNet as the layers up to stage 3, stage 4, the channels between them, and the stride there.

    Raises:
        UserError: another architecture.
    """
    model = getattr(backbone, "model", None)
    if isinstance(backbone, TinyResNet):
        trunk, last = nn.Sequential(backbone.stem, *backbone.blocks[:-1]), backbone.blocks[-1]
    elif isinstance(model, ResNet):
        names = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
        *front, last = (model.get_submodule(name) for name in names)
        trunk = nn.Sequential(*front)
    else:
        raise UserError(
            f"detection_finetune.neck=c4 is for ResNets, not {backbone.config.name}: set detection_finetune.neck=fpn"
        )
    return trunk, last, backbone.stage_channels[2], stage_strides(backbone)[2]


def faster_rcnn(backbone: Backbone, classes: int, design: Design, preparation: Preparation) -> FasterRCNN:
    """A detector of ``classes`` classes around a copy of ``backbone``, all else freshly initialised.

    Args:
        preparation: its mean and deviation are what images are normalised by.

    Raises:
        UserError: a neck or anchors that do not suit the backbone.
    """
    build = _c4 if design.neck == "c4" else _fpn
    body, anchors, align, head, width, more = build(copy.deepcopy(backbone), design)
    network = FasterRCNN(
        body,
        rpn_anchor_generator=AnchorGenerator(anchors, (RATIOS,) * len(anchors)),
        box_roi_pool=align,
        box_head=head,
        box_predictor=FastRCNNPredictor(width, classes + 1),
        rpn_pre_nms_top_n_train=more * design.proposals_train,
        rpn_pre_nms_top_n_test=more * design.proposals_test,
        rpn_post_nms_top_n_train=design.proposals_train,
        rpn_post_nms_top_n_test=design.proposals_test,
        box_batch_size_per_image=design.rois,
    )
    network.transform = AsItIs(1, 1, list(preparation.mean), list(preparation.std))
    if design.masks:
        _add_masks(network, classes, design.channels)
    return network


def _add_masks(network: FasterRCNN, classes: int, channels: int) -> None:
    heads = network.roi_heads
    heads.mask_roi_pool = MultiScaleRoIAlign(heads.box_roi_pool.featmap_names, output_size=14, sampling_ratio=0)
    heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
    heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)


Parts = tuple[nn.Module, tuple[tuple[int, ...], ...], MultiScaleRoIAlign, nn.Module, int, int]
"""Body, anchors by level, RoIAlign, head, channels of the head, proposals compared for each that is kept."""


def _c4(backbone: Backbone, design: Design) -> Parts:
    layers, last, channels, stride = split_stages(backbone)
    anchors = design.anchors or tuple(stride * n for n in C4_ANCHORS)
    width = backbone.num_features
    norm = nn.BatchNorm2d(width) if design.extra_norm else nn.Identity()
    align = MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0)
    return Trunk(layers, channels), (anchors,), align, LastStage(last, norm), width, 6


def _fpn(backbone: Backbone, design: Design) -> Parts:
    levels = pyramid_levels(backbone)
    strides = [*levels.values(), 2 * max(levels.values())]
    anchors = design.anchors or tuple(FPN_ANCHORS * stride for stride in strides)
    if len(anchors) != len(strides):
        raise UserError(
            f"detection_finetune.anchors has {len(anchors)} sides for the {len(strides)} levels of "
            f"{backbone.config.name} (strides {', '.join(map(str, strides))}): give one for each"
        )
    align = MultiScaleRoIAlign([str(i) for i in range(len(levels))], output_size=7, sampling_ratio=0)
    head = TwoMLPHead(design.channels * 49, design.hidden)
    body = Pyramid(backbone, list(levels), design.channels)
    return body, tuple((side,) for side in anchors), align, head, design.hidden, 1


def freeze_batchnorm(network: nn.Module) -> None:
    """Keep each BatchNorm as it is: its statistics by `nn.Module.eval`, which a later ``train()`` would undo."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)


def detector_loss(network: FasterRCNN, device: torch.device) -> Callable[[Sequence[Example]], Tensor]:
    """The loss of this process's part of a batch, weighted by its share of the images of all processes."""

    def loss(examples: Sequence[Example]) -> Tensor:
        images = [example.pixels.to(device).float() / 255 for example in examples]
        targets = [
            {
                "boxes": torch.from_numpy(example.objects.boxes).to(device),
                "labels": torch.from_numpy(example.objects.labels).to(device) + 1,  # 0 is the background
                **({} if example.masks is None else {"masks": example.masks.to(device)}),
            }
            for example in examples
        ]
        parts: dict[str, Tensor] = network(images, targets)
        images_here = torch.tensor(float(len(examples)), device=device)
        return torch.stack(list(parts.values())).sum() * (images_here / joined(images_here))

    return loss


def detector_predictor(network: FasterRCNN, masks: bool = False) -> Callable[[Tensor], list[list[Found]]]:
    """What the detector finds in images of one size, in evaluation mode; with ``masks`` those, too."""

    def predict(images: Tensor) -> list[list[Found]]:
        found = network(list(images.float() / 255))
        return [
            [Found(one["boxes"], one["scores"], one["labels"] - 1, one["masks"][:, 0] if masks else None)
             for one in found]
        ]  # fmt: skip

    return predict
