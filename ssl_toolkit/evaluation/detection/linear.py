"""Linear detection: what one linear layer on frozen feature maps can say of the objects in an image.

Each cell of the maps predicts, by a 1x1 convolution, K class scores and a box. A cell is positive for an object if its
centre lies in the object's box and nearer than 1.5 cells to the box's centre on both axes (the centre sampling of FCOS,
Tian et al. 2019), or if the object's centre lies in it, however small the object is; of several objects the smallest
takes it. Class scores are independent sigmoids trained by the focal loss (Lin et al. 2017), boxes are an offset of the
centre and the logarithm of width and height, both in cells, trained by the generalised IoU loss (Rezatofighi et al.
2019) on positive cells; both are divided by the number of positive cells in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.evaluation.detection.objects import resized
from ssl_toolkit.evaluation.detection.predicting import Found
from ssl_toolkit.evaluation.detection.samples import Example
from ssl_toolkit.evaluation.features import Preparation
from ssl_toolkit.evaluation.heads import Heads, Standardizer
from ssl_toolkit.evaluation.live import joined
from ssl_toolkit.evaluation.segmentation.options import spread

RADIUS = 1.5
"""Of centre sampling, in cells (FCOS)."""

PRIOR = 0.01
"""The score every class starts with, so that the many cells without object do not rule the first steps."""

MAX_LOG_SIZE = 5.0
"""Boxes are at most e^5 = 148 cells wide."""

BOX = 4
MIN_SCORE = 0.01
CANDIDATES = 1000
"""Highest scores of an image that are compared with each other."""

STATISTICS = 256
"""Training images that mean and deviation of the channels are taken of."""


class FrozenMaps:
    """Feature maps of images of any size.

    Args:
        maps: ``last``, or ``stages`` for the whole pyramid, upsampled to its finest level and joined.
        multiple: sides of images are filled up to multiples of this, by the mean colour.
    """

    def __init__(
        self,
        backbone: Backbone,
        maps: str,
        multiple: int,
        preparation: Preparation,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.backbone, self.maps, self.multiple = backbone, maps, multiple
        self.preparation, self.device, self.precision = preparation, device, precision

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)``, values 0 to 255, to ``(B, D, h, w)`` float32."""
        right, bottom = (-side % self.multiple for side in (images.shape[3], images.shape[2]))
        x = F.pad(self.preparation.normalise(images, self.device), (0, right, 0, bottom))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            if self.maps == "last":
                return self.backbone(x).maps.float()
            levels = [level.float() for level in self.backbone.stages(x)]
        size = levels[0].shape[2:]
        return torch.cat([F.interpolate(v, size, mode="bilinear", align_corners=False) for v in levels], 1)

    def stride(self, images: Tensor, maps: Tensor) -> float:
        """Pixels of ``images`` in a cell of their ``maps``."""
        side = images.shape[3] + -images.shape[3] % self.multiple
        return side / int(maps.shape[3])


def new_heads(count: int, in_features: int, classes: int) -> Heads:
    """Heads that start with `PRIOR` for every class, and boxes of one cell."""
    heads = Heads(count, in_features, classes + BOX)
    for bias in heads.biases:
        bias.data[:classes] = -math.log((1 - PRIOR) / PRIOR)
    return heads


def cell_centres(height: int, width: int, stride: float, device: torch.device) -> Tensor:
    """``(height * width, 2)`` centres of cells, x and y in pixels."""
    y, x = ((torch.arange(n, device=device) + 0.5) * stride for n in (height, width))
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), 1)


def assign(centres: Tensor, boxes: Tensor, stride: float) -> Tensor:
    """Which object each cell is positive for, ``(P,)``: positions in ``boxes`` ``(n, 4)``, -1 for none."""
    if not len(boxes):
        return torch.full((len(centres),), -1, device=centres.device)
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    away = middle - centres[:, None]
    near = (away.abs() < torch.minimum(size / 2, torch.full_like(size, RADIUS * stride))).all(2)
    holds = ((away >= -stride / 2) & (away < stride / 2)).all(2)
    area = size.prod(1).expand(len(centres), -1).where(near | holds, torch.inf)
    smallest, owner = area.min(1)
    return owner.where(smallest.isfinite(), -1)


def targets(
    examples: Sequence[Example], height: int, width: int, stride: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What the cells of a batch are trained to say.

    Returns:
        ``(N,)`` classes, -1 where there is no object; ``(N,)`` whether a cell is scored, which it is not inside of
        objects to be ignored; ``(N, 4)`` boxes in pixels, of positive cells. N counts the cells of all images.
    """
    centres = cell_centres(height, width, stride, device)
    labels, scored, boxes = [], [], []
    for example in examples:
        all_boxes = torch.from_numpy(example.objects.boxes).to(device)
        ignore = torch.from_numpy(example.objects.ignore).to(device)
        mine = all_boxes[~ignore]
        owner = assign(centres, mine, stride)
        label = torch.from_numpy(example.objects.labels).to(device)[~ignore]
        labels.append(torch.cat((label, label.new_tensor([-1])))[owner])
        boxes.append(torch.cat((mine, mine.new_zeros(1, BOX)))[owner])
        x, y = centres[:, :1], centres[:, 1:]
        left, top, right, bottom = all_boxes[ignore].unbind(1)
        hidden = ((x >= left) & (x < right) & (y >= top) & (y < bottom)).any(1)
        scored.append((owner >= 0) | ~hidden)
    return torch.cat(labels), torch.cat(scored), torch.cat(boxes)


def decode(outputs: Tensor, centres: Tensor, stride: float) -> Tensor:
    """Box outputs ``(4, ..., P)`` of cells at ``centres`` ``(P, 2)`` to boxes ``(..., P, 4)`` in pixels."""
    x, y = centres.unbind(1)
    middle = torch.stack((x + stride * outputs[0], y + stride * outputs[1]), -1)
    half = stride / 2 * outputs[2:].clamp(max=MAX_LOG_SIZE).exp().movedim(0, -1)
    return torch.cat((middle - half, middle + half), -1)


def detection_loss(outputs: Tensor, centres: Tensor, stride: float, target: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Sum over heads of the focal loss and the generalised IoU loss, over the positive cells of all processes.

    Args:
        outputs: ``(K + 4, L, N)`` of L heads at N cells.
        centres: ``(N, 2)``.
        target: from `targets`.
    """
    labels, scored, boxes = target
    classes = outputs.shape[0] - BOX
    positive = labels >= 0
    count = joined(positive.sum()).clamp_min(1)
    truth = (labels == torch.arange(classes, device=labels.device)[:, None]).float()[:, None]
    logits = outputs[:classes]
    focal = sigmoid_focal_loss(logits, truth.expand_as(logits)) * scored
    found = decode(outputs[classes:, :, positive], centres[positive], stride)
    overlap = generalized_box_iou_loss(found, boxes[positive].expand_as(found))
    return (focal.sum() + overlap.sum()) / count


def train_loss(heads: Heads, reader: FrozenMaps, norm: Standardizer) -> Callable[[Sequence[Example]], Tensor]:
    """The loss of a batch of images of one size."""

    def loss(examples: Sequence[Example]) -> Tensor:
        images = torch.stack([example.pixels for example in examples])
        maps = reader(images)
        height, width = maps.shape[2:]
        stride = reader.stride(images, maps)
        target = targets(examples, height, width, stride, maps.device)
        centres = cell_centres(height, width, stride, maps.device).repeat(len(images), 1)
        outputs = heads(norm(maps).movedim(1, 0).flatten(1))
        return detection_loss(outputs, centres, stride, target)

    return loss


def predictor(
    heads: Heads, reader: FrozenMaps, norm: Standardizer, nms: float, limit: int
) -> Callable[[Tensor], list[list[Found]]]:
    """What every head finds in images of one size.

    Args:
        nms: overlap above which the lower of two boxes of a class is dropped.
        limit: boxes an image.
    """

    def predict(images: Tensor) -> list[list[Found]]:
        maps = reader(images)
        height, width = maps.shape[2:]
        stride = reader.stride(images, maps)
        centres = cell_centres(height, width, stride, maps.device)
        outputs = heads(norm(maps).movedim(1, 0).flatten(1)).unflatten(2, (len(images), -1))
        boxes = decode(outputs[-BOX:], centres, stride)
        scores = outputs[:-BOX].sigmoid().permute(1, 2, 3, 0)
        size = (int(images.shape[2]), int(images.shape[3]))
        return [[_kept(b, s, size, nms, limit) for b, s in zip(*head)] for head in zip(boxes, scores)]

    return predict


def _kept(boxes: Tensor, scores: Tensor, size: tuple[int, int], nms: float, limit: int) -> Found:
    """Of boxes ``(P, 4)`` with scores ``(P, K)`` those that are no weaker copies of others."""
    flat = scores.flatten()
    best, at = flat.topk(min(CANDIDATES, len(flat)))
    kept = best > MIN_SCORE  # nan of a diverged head is not
    best, at = best[kept], at[kept]
    boxes = clip_boxes_to_image(boxes[at // scores.shape[1]], size)
    labels = at % scores.shape[1]
    wide = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, best, labels = boxes[wide], best[wide], labels[wide]
    rows = batched_nms(boxes, best, labels, nms)[:limit]
    return Found(boxes[rows], best[rows], labels[rows])


def fit_standardizer(reader: FrozenMaps, dataset: ImageDataset, size: int, images: int = STATISTICS) -> Standardizer:
    """Mean and deviation of each channel over the cells of ``images`` whole images, spread evenly over the data set.

    Args:
        size: shorter side of the images in pixels.
    """
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for index in spread(images, len(dataset)):
        pixels, _ = resized(dataset.image(index), size)
        cells = reader(pixels[None].to(reader.device)).flatten(2)[0].double().cpu()
        total, squares, count = total + cells.sum(1), squares + cells.square().sum(1), count + cells.shape[1]
    return Standardizer.of_sums(total, squares, count)
