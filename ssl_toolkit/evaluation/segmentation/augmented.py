"""Linear segmentation as in the VICRegL paper: heads, or all of the network, trained on augmented crops."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.probe import map_size
from ssl_toolkit.criteria.distributed import rank
from ssl_toolkit.data.base import SPLITS, VOID, ImageDataset
from ssl_toolkit.data.transforms import as_rgb, eval_mask
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.live import Plan, train
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.segmentation.augment import CropBatch, CropSpec, MaskedCrops
from ssl_toolkit.evaluation.segmentation.networks import FcnHeads, LinearHeads, Segmenter, own_backbone
from ssl_toolkit.evaluation.segmentation.options import segmentation_outcome, spread
from ssl_toolkit.evaluation.segmentation.pixels import resized
from ssl_toolkit.evaluation.segmentation.settings import NAME, SegmentationAugmentedConfig, Settings, decided
from ssl_toolkit.evaluation.segmentation.testing import TestSpec, evaluate_split, fitted_pair, predicted
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.processes.world import agree, from_first

LOGITS = 2**27
"""Logits at full resolution held at once in training (512 MiB), or those of one head; the rest are made again for their
gradient."""

PROBED = 448
"""Side in pixels of the image that tells a network's stride."""


def crop_loss(cells: Tensor, masks: Tensor, pixels: int, limit: int = LOGITS) -> Tensor:
    """Sum over heads of the cross entropy over ``pixels``; void pixels count among them and add nothing, as in
    mmsegmentation.

    Args:
        cells: logits ``(K, L, B, h, w)``, upsampled to the masks here.
        masks: ``(B, H, W)`` uint8.
        pixels: of the whole batch, over all processes.
        limit: logits at full resolution held at once.
    """
    target = masks.long()
    chunk = max(1, limit // (cells.shape[0] * masks.numel()))
    if chunk >= cells.shape[1]:
        return _summed_entropy(cells, target) / pixels
    parts = [checkpoint(_summed_entropy, part, target, use_reentrant=False) for part in torch.split(cells, chunk, 1)]
    return torch.stack(parts).sum() / pixels


def _summed_entropy(cells: Tensor, target: Tensor) -> Tensor:
    logits = resized(cells, *target.shape[1:])
    flat = logits.reshape(1, len(logits), -1)  # classes first: the softmax runs along memory
    return F.cross_entropy(flat, target.flatten().repeat(logits.shape[1])[None], ignore_index=VOID, reduction="sum")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What learning rates that were trained together came to.

    Attributes:
        diverged: by learning rate.
        val, test: confusion matrices ``(L, K, K)``.
        shown: predicted masks ``(L, n, S, S)`` uint8 of the examples.
    """

    diverged: list[bool]
    val: Tensor
    test: Tensor
    shown: Tensor


@PROTOCOLS.register(NAME, SegmentationAugmentedConfig)
class SegmentationAugmented(Protocol):
    """A head on the maps of a frozen or fine-tuned backbone, trained on random crops, tested at the resolution of the
    masks; its learning rate chosen on validation by mIoU."""

    needs = ("masks",)
    metric = "miou"
    parallel = True
    describes = "linear or FCN head on augmented images"

    options: SegmentationAugmentedConfig

    @property
    def variant(self) -> str:
        parts = (
            "fcn" if self.options.head == "fcn" else "",
            "finetuned" if self.options.backbone == "finetune" else "",
        )
        return "-".join(filter(None, parts))

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        """Nothing: images are read anew, uncut."""
        return {}

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        settings = self._decide(source, datasets["train"])
        for split in SPLITS:
            if len(datasets[split]) == 0:
                raise UserError(f"{datasets[split].name}: its {split} split has no images")
        check_crop(own_backbone(source.backbone, settings.output_stride), settings.crop)

    def _decide(self, source: Source, dataset: ImageDataset) -> Settings:
        try:
            settings = decided(self.options, source.backbone, dataset)
        except ValueError as error:
            raise UserError(f"{NAME}: {error}") from error
        self.options = settings.written()
        return settings

    def run(self, data: EvalData) -> Outcome:
        assert data.mask_classes is not None
        settings = self._decide(data.source, data.datasets["train"])
        together = [settings.lrs] if settings.frozen else [(lr,) for lr in settings.lrs]
        runs = [_Run(data, settings, lrs) for lrs in together]
        scores = [run.scores() for run in runs]
        diverged = [flag for each in scores for flag in each.diverged]
        val, test = torch.cat([each.val for each in scores]), torch.cat([each.test for each in scores])
        outcome, best = segmentation_outcome(NAME, settings.lrs, diverged, val, test, data.mask_classes)
        if self.options.examples:
            outcome.examples = _pictures(data, runs[0].shown, torch.cat([each.shown for each in scores])[best])
        for run in runs:
            run.forget()
        return outcome


def check_crop(backbone: Backbone, crop: tuple[int, int]) -> None:
    """`UserError` for a crop that ``backbone`` does not take, or that is no whole number of its cells."""
    map_size(backbone, *crop)
    strides = total_stride(backbone, crop)
    for side, stride in zip(crop, strides):
        if side % stride:
            name = backbone.config.name
            raise UserError(
                f"{NAME}.crop: {side} pixels are no whole number of cells of {name}, take a multiple of {stride}"
            )


def total_stride(backbone: Backbone, crop: tuple[int, int]) -> tuple[int, int]:
    """Pixels a cell of the last map, down and across."""
    try:  # a side of whole cells, whatever they are: 4, 7, 8, 14, 16, 32 or 64 pixels
        side, cells = (PROBED, PROBED), map_size(backbone, PROBED)
    except UserError:  # a network for one size
        side, cells = crop, map_size(backbone, *crop)
    return side[0] // cells[0], side[1] // cells[1]


class _Run:
    """Learning rates that are trained together: all of a frozen backbone, one of a fine-tuned one."""

    def __init__(self, data: EvalData, settings: Settings, lrs: tuple[float, ...]) -> None:
        self.data, self.settings, self.lrs = data, settings, lrs
        self.shown = spread(settings.options.examples, len(data.datasets["test"]))
        part = dataclasses.replace(settings.written(), lrs=list(lrs))
        self.training = data.unfinished(NAME, part)
        self.finished = dataclasses.replace(self.training, name=f"{NAME}-scores")

    def forget(self) -> None:
        """Remove what is kept, once all is done."""
        if rank() == 0:
            self.finished.clear()

    def scores(self) -> Scores:
        """Train and evaluate, unless that was done before."""
        state = from_first(self.finished.load)
        if state is None:
            scores = self._made()
            if rank() == 0:
                self.finished.save(vars(scores))
                self.training.clear()  # of a fine-tuned backbone gigabytes
            return scores
        return Scores(**state)

    def _made(self) -> Scores:
        data, settings = self.data, self.settings
        network = self._network()
        self._train(network)
        network.eval()
        diverged = [not all(bool(p.isfinite().all()) for p in group) for group in network.heads.groups()]
        if not settings.frozen:
            diverged = [diverged[0] or not all(bool(p.isfinite().all()) for p in network.parameters())]
        spec = TestSpec(
            settings.resize,
            settings.test == "slide",
            settings.crop,
            total_stride(network.backbone, settings.crop),
            lambda images: data.preparation.normalise(images, data.device),
        )
        val, test = (self._confusion(network, spec, split) for split in ("val", "test"))
        return Scores(diverged, val, test, agree(lambda: self._examples(network, spec)))

    def _network(self) -> Segmenter:
        data, settings = self.data, self.settings
        backbone = own_backbone(data.source.backbone, settings.output_stride)
        channels = backbone.stage_channels if settings.stages else (backbone.num_features,)
        count, classes = len(self.lrs), len(data.mask_classes or ())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.options.seed)
            heads: LinearHeads | FcnHeads
            if settings.options.head == "linear":
                heads = LinearHeads(count, channels, classes, settings.options.head_norm, settings.dropout)
            else:
                heads = FcnHeads(count, channels, classes, settings.dropout)
        return Segmenter(backbone, heads, settings.stages, settings.frozen, data.precision).to(data.device)

    def _train(self, network: Segmenter) -> None:
        data, settings = self.data, self.settings
        preparation, dataset, options = data.preparation, data.datasets["train"], settings.options
        spec = CropSpec(
            settings.resize,
            (options.scale[0], options.scale[1]),
            settings.crop,
            options.cat_max_ratio,
            options.flip,
            options.photometric,
            tuple(255 * mean for mean in preparation.mean),
        )
        plan = Plan(settings.iterations, options.batch_size, options.seed, preparation.workers)
        pixels = min(options.batch_size, len(dataset)) * settings.crop[0] * settings.crop[1]

        def loss(batch: CropBatch) -> Tensor:
            images = preparation.normalise(batch.images, data.device)
            return crop_loss(network(images, batch.seeds), batch.masks.to(data.device), pixels)

        network.train()
        rates = "" if settings.frozen else f", lr {self.lrs[0]:g}"
        train(
            network.trained,
            _optimizer(network, settings, self.lrs),
            settings.factor,
            MaskedCrops(dataset, spec, options.seed),
            loss,
            plan,
            device=data.device,
            title=f"{options.head} segmentation, {options.backbone}{rates}",
            unfinished=self.training,
            finite=False,
            console=data.console,
        )

    def _confusion(self, network: Segmenter, spec: TestSpec, split: str) -> Tensor:
        return evaluate_split(
            network,
            len(self.lrs),
            self.data.datasets[split],
            spec,
            batch_size=self.settings.options.batch_size,
            workers=self.data.preparation.workers,
            device=self.data.device,
            title=f"segmentation of {split}",
            console=self.data.console,
        )

    def _examples(self, network: Segmenter, spec: TestSpec) -> Tensor:
        """Predictions for test images, cut like those of other protocols: ``(L, n, S, S)`` uint8."""
        data, size = self.data, self.data.preparation.size
        shown = torch.empty(len(self.lrs), len(self.shown), size, size, dtype=torch.uint8)
        for position, index in enumerate(self.shown):
            image, mask = fitted_pair(data.datasets["test"], index, spec.resize)
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(data.device)
            classes = (
                predicted(network, pixels, mask.shape[0], mask.shape[1], spec)[:, 0].cpu().numpy().astype(np.uint8)
            )
            for row, each in enumerate(classes):
                shown[row, position] = eval_mask(each, data.preparation.resize, size)
        return shown


def _optimizer(network: Segmenter, settings: Settings, lrs: tuple[float, ...]) -> torch.optim.Optimizer:
    own: list[list[nn.Parameter]] = network.heads.groups() if settings.frozen else [list(network.parameters())]
    groups = [{"params": parameters, "lr": lr} for parameters, lr in zip(own, lrs)]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lrs[0], momentum=0.9, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, lr=lrs[0], weight_decay=settings.weight_decay)


def _pictures(data: EvalData, index: list[int], shown: Tensor) -> dict[str, NDArray[Any]]:
    preparation = data.preparation
    masks = [eval_mask(data.datasets["test"].mask(i), preparation.resize, preparation.size) for i in index]
    return {
        "image": as_rgb(data.images("test", index).numpy()),
        "mask": torch.stack(masks).numpy(),
        "prediction": shown.numpy(),
        "classes": np.array(data.mask_classes),
        "index": np.array(index),
    }
