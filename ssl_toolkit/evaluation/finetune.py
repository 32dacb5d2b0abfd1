"""Fine-tuning: a copy of the backbone and a linear layer on it, trained together.

With a part of the labels (``finetune.labels``) it is the semi-supervised evaluation of SimCLR (arXiv:2002.05709) and
VICReg (arXiv:2105.04906).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.backbones.groups import parameter_groups
from ssl_toolkit.criteria.distributed import rank, world_size
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError, nearest
from ssl_toolkit.evaluation.classification import classification_outcome
from ssl_toolkit.evaluation.crops import CropConfig, LabelledCrops
from ssl_toolkit.evaluation.features import Values, compute, split_batches
from ssl_toolkit.evaluation.heads import check_lrs
from ssl_toolkit.evaluation.live import Diverged, Plan, cosine, joined, train
from ssl_toolkit.evaluation.metrics import ranks
from ssl_toolkit.evaluation.protocol import POOLED, PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.reading import Rows, read_labels
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.subsets import Labelled, LabelsConfig, labelled
from ssl_toolkit.evaluation.unfinished import Unfinished
from ssl_toolkit.processes.world import agree
from ssl_toolkit.progress import progress_bar

NAME = "finetune"
OPTIMIZERS = ("sgd", "adamw")
BATCHNORMS = ("train", "frozen")


@dataclass
class FinetuneConfig:
    """Options of fine-tuning; the defaults are those of the VICReg authors' semi-supervised evaluation.

    Attributes:
        lrs: learning rates of the backbone's last layer, a training for each; not scaled by the batch size.
        head_lr: of the linear layer; None: the same.
        layer_decay: each layer of the backbone learns this many times as fast as the one after it, and where
            ``head_lr`` is None the last one as much slower than the head.
        optimizer: ``sgd`` with momentum 0.9, or ``adamw``.
        nesterov: of sgd.
        epochs: passes over the training images.
        warmup_epochs: of them, in which the learning rate rises along a line; then it falls to 0 along a cosine.
        batch_size: images a step, of all processes together.
        weight_decay: on weights, not on biases and norms.
        label_smoothing: share of the target that goes to all classes alike.
        drop_path: stochastic depth rate, where the architecture has it; None keeps the backbone's own.
        batchnorm: ``train`` normalises by each process's part of the batch; ``frozen`` by the statistics that the
            backbone came with. Their scale and shift are trained either way.
        crop: how training images are cut.
        labels: which training images have labels.
        seed: of the order of images, of their crops and of what is random in the network.
    """

    lrs: list[float] = field(default_factory=lambda: [0.1, 0.03, 0.01])
    head_lr: float | None = None
    layer_decay: float = 1.0
    optimizer: str = "sgd"
    nesterov: bool = False
    epochs: int = 20
    warmup_epochs: float = 0.0
    batch_size: int = 256
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    drop_path: float | None = None
    batchnorm: str = "train"
    crop: CropConfig = field(default_factory=CropConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_lrs(self.lrs)
        for name, valid in (("optimizer", OPTIMIZERS), ("batchnorm", BATCHNORMS)):
            if getattr(self, name) not in valid:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: {nearest(getattr(self, name), valid)}")
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError("nesterov is of optimizer=sgd alone")
        if self.head_lr is not None and self.head_lr <= 0:
            raise ValueError(f"head_lr must be positive or null, not {self.head_lr}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("epochs and batch_size must be 1 or more")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs must be 0 or more and below epochs, not {self.warmup_epochs}")
        if self.weight_decay < 0 or self.seed < 0:
            raise ValueError("weight_decay and seed must not be negative")
        for name in ("label_smoothing", "drop_path"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")


class Classifier(nn.Module):
    """A backbone and a linear layer on its pooled features, which starts at zero.

    Args:
        backbone: becomes a part of it.
        frozen_statistics: keep every BatchNorm of the backbone in evaluation mode.
    """

    def __init__(self, backbone: Backbone, classes: int, frozen_statistics: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.frozen_statistics = frozen_statistics

    def train(self, mode: bool = True) -> Classifier:
        """As of any module, but for frozen statistics."""
        super().train(mode)
        if self.frozen_statistics:
            for norm in batchnorms(self.backbone):
                norm.eval()
        return self

    def forward(self, images: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Logits ``(B, C)`` in float32 of normalised images; only the backbone runs in ``precision``."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            pooled = self.backbone(images).pooled
        logits: Tensor = self.head(pooled.float())
        return logits


def batchnorms(module: nn.Module) -> list[nn.Module]:
    """Every BatchNorm in ``module``."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def backbone_copy(source: Backbone, drop_path: float | None) -> Backbone:
    """A backbone of its own with the weights of ``source``, trainable.

    Raises:
        UserError: the architecture has no stochastic depth.
    """
    if drop_path is None:
        backbone = copy.deepcopy(source)
    else:
        try:
            backbone = create_backbone(dataclasses.replace(source.config, drop_path=drop_path))
        except UserError as error:
            raise UserError(f"finetune.drop_path={drop_path}: {error}; or leave finetune.drop_path null") from error
        backbone.load_state_dict(source.state_dict())
    return backbone.requires_grad_(True)


def finetune_optimizer(network: Classifier, options: FinetuneConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer of one training."""
    groups = parameter_groups(network, options.weight_decay, lr, options.layer_decay)
    if options.head_lr is not None:
        groups = parameter_groups(network.backbone, options.weight_decay, lr, options.layer_decay)
        groups += [
            {"params": [network.head.weight], "lr": options.head_lr, "weight_decay": options.weight_decay},
            {"params": [network.head.bias], "lr": options.head_lr, "weight_decay": 0.0},
        ]
    for group in groups:
        group.pop("decays", None)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=options.nesterov)
    return torch.optim.AdamW(groups)


@PROTOCOLS.register(NAME, FinetuneConfig)
class Finetune(Protocol):
    """The whole network trained on labels; its learning rate chosen on validation."""

    needs = ("labels",)
    metric = "top1"
    parallel = True
    describes = "the whole network trained on labels"

    options: FinetuneConfig

    @property
    def variant(self) -> str:
        return self.options.labels.variant

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        options = self.options
        for dataset in datasets.values():
            read_labels(dataset)
        images = min(options.batch_size, len(labelled(options.labels, datasets["train"]).rows))
        if options.batchnorm == "train" and images // world_size() < 2 and batchnorms(source.backbone):
            raise UserError(
                f"finetune: BatchNorm needs 2 images in each of {world_size()} processes, a batch has {images}: "
                "take finetune.batchnorm=frozen, or more images"
            )
        if options.drop_path is not None:
            backbone_copy(source.backbone, options.drop_path)

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {}

    def run(self, data: EvalData) -> Outcome:
        assert data.classes is not None
        chosen = labelled(self.options.labels, data.datasets["train"])
        settings: list[dict[str, Any]] = []
        diverged: list[bool] = []
        val: list[Tensor] = []
        test: list[Tensor] = []
        for lr in self.options.lrs:
            network = self._train(data, chosen, lr)
            diverged.append(network is None)
            for split, found in (("val", val), ("test", test)):
                found.append(_ranks(network, data, split))
            settings.append({"lr": lr, "head_lr": self.options.head_lr or lr})
        outcome = classification_outcome(
            settings, diverged, torch.stack(val), torch.stack(test), data.classes, chosen, f"{NAME}.lrs"
        )
        for lr in self.options.lrs:
            self._unfinished(data, chosen, lr).clear()
        return outcome

    def _unfinished(self, data: EvalData, chosen: Labelled, lr: float) -> Unfinished:
        """Of one rate: others may be added to the sweep without starting it anew."""
        return data.unfinished(f"{NAME}-lr{lr:g}", dataclasses.replace(self.options, lrs=[lr])).of(chosen.details)

    def _train(self, data: EvalData, chosen: Labelled, lr: float) -> Classifier | None:
        """A trained network in evaluation mode; None where it diverged."""
        assert data.classes is not None
        options, device, preparation = self.options, data.device, data.preparation
        samples = LabelledCrops(data.datasets["train"], chosen, options.crop, preparation, options.seed)
        plan = Plan.of_passes(options.epochs, options.batch_size, len(samples), options.seed, preparation.workers)
        warmup = round(options.warmup_epochs / options.epochs * plan.steps)
        backbone = backbone_copy(data.source.backbone, options.drop_path)
        network = Classifier(backbone, len(data.classes), options.batchnorm == "frozen")
        network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            logits = network(preparation.normalise(batch[0], device), data.precision)
            target = batch[1].to(device)
            smoothing = options.label_smoothing
            total = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
            return total / plan.images(len(samples))

        try:
            train(
                network,
                finetune_optimizer(network, options, lr),
                cosine(plan.steps, warmup),
                samples,
                loss,
                plan,
                device=device,
                title=f"fine-tuning, lr {lr:g}",
                unfinished=self._unfinished(data, chosen, lr),
                console=data.console,
            )
        except Diverged:
            return None
        finite = all(bool(value.isfinite().all()) for value in network.state_dict().values())
        return network.eval() if finite else None


def _ranks(network: Classifier | None, data: EvalData, split: str) -> Tensor:
    """`ranks` of the true class of every image of ``split``, ``(N,)``, each process doing its part; last where there
    is no network."""
    dataset, device = data.datasets[split], data.device
    assert data.classes is not None
    if network is None:
        return torch.full((len(dataset),), len(data.classes))
    labels = read_labels(dataset)
    assert labels is not None
    found = torch.zeros_like(labels)
    weight, bias = (p.detach().cpu() for p in (network.head.weight, network.head.bias))
    batches = split_batches(len(dataset), data.preparation.batch_size)[rank() :: world_size()]

    def put(rows: Rows, values: Values) -> None:
        found[rows] = ranks(F.linear(values[POOLED], weight, bias), labels[rows])

    title = f"classes of {dataset.name} {dataset.split}"
    with progress_bar(title, sum(map(len, batches)), console=data.console) as bar:
        agree(
            lambda: compute(
                network.backbone,
                dataset,
                batches,
                data.preparation,
                [POOLED],
                put,
                bar,
                device=device,
                precision=data.precision,
            )
        )
    return joined(found.to(device)).cpu()
