"""One command for all protocols: features are extracted once for each split, every protocol reads them."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import SPLITS, ImageDataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.features import FeatureBank, Preparation, eval_images, extract
from ssl_toolkit.evaluation.knn import KnnConfig
from ssl_toolkit.evaluation.linear import LinearConfig
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Protocol
from ssl_toolkit.evaluation.results import Result
from ssl_toolkit.evaluation.segmentation import SegmentationConfig
from ssl_toolkit.hardware import pick_device, pick_precision
from ssl_toolkit.registry import typed

COMPOSED = ("data", "backbone")
"""Groups that the command line composes into the same config; read by `Source` and `evaluate`, not here."""


@dataclass
class EvalConfig:
    """The keys of ``configs/eval.yaml``.

    Attributes:
        run: run folder to evaluate.
        checkpoint: exported weights or a training checkpoint to evaluate.
        out: folder for the results.
        seed: of an untrained backbone.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: of the forward pass: ``auto``, ``bf16`` or ``fp32``. Heads are trained in float32.
        batch_size: images a forward pass.
        workers: processes that read images; 0 reads them in this one.
        knn, linear, segmentation: options of the protocols.
    """

    run: str | None = None
    checkpoint: str | None = None
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 256
    workers: int = 0
    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError("batch_size must be 1 or more and workers 0 or more")


@dataclass(frozen=True)
class Source:
    """What is evaluated.

    Attributes:
        preprocessing: ``mean`` and ``std`` that the backbone was trained with; without them the data's.
        name: for tables.
        checkpoint_path, checkpoint_sha256: of its weights, None for an untrained backbone.
    """

    backbone: Backbone
    preprocessing: Mapping[str, Any]
    name: str
    checkpoint_path: str | None = None
    checkpoint_sha256: str | None = None


def eval_config(options: EvalConfig | Mapping[str, Any] | DictConfig) -> EvalConfig:
    """Options with every key and value checked; the groups ``data`` and ``backbone`` beside them are left.

    Raises:
        UserError: an unknown key or a bad value.
    """
    if isinstance(options, EvalConfig):
        return options
    return typed(EvalConfig, {str(k): v for k, v in options.items() if k not in COMPOSED}, "eval")


def evaluate(
    protocols: Sequence[str],
    source: Source,
    data_config: Mapping[str, Any] | DictConfig,
    options: EvalConfig | Mapping[str, Any] | DictConfig,
    out: Path | None = None,
) -> list[Result]:
    """Run ``protocols`` on the frozen backbone of ``source``.

    Args:
        protocols: names of `PROTOCOLS`.
        data_config: key ``name`` and the options of the data set.
        out: folder for ``<protocol>-<data>.json`` and examples; None writes nothing. Each is written as soon
            as its protocol ends.

    Raises:
        UserError: an unknown protocol, data without the labels or masks that a protocol needs, or a backbone
            that does not fit the data; all of this before any image goes through the backbone.
    """
    options = eval_config(options)
    _protocols(protocols, options)  # an unknown name stops before data is made
    datasets = {split: build_dataset(data_config, split) for split in SPLITS}
    return evaluate_on(protocols, source, datasets, options, out)


def evaluate_on(
    protocols: Sequence[str],
    source: Source,
    datasets: Mapping[str, ImageDataset],
    options: EvalConfig,
    out: Path | None = None,
) -> list[Result]:
    """`evaluate` on data sets that are already built, one for each of `SPLITS`."""
    chosen = _protocols(protocols, options)
    _check_data(chosen, datasets)
    preparation = _preparation(source, datasets["train"], options)
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    masks = any("masks" in protocol.needs for protocol in chosen.values())
    start = time.perf_counter()
    banks = {
        split: extract(
            source.backbone,
            datasets[split],
            preparation,
            device=device,
            precision=precision,
            maps=masks,
            masks=masks,
        )
        for split in SPLITS
    }
    shared = _shared(source, datasets, banks, preparation, precision)
    shared["extraction_seconds"] = round(time.perf_counter() - start, 3)
    data = _eval_data(banks, datasets, preparation)
    results = []
    for name, protocol in chosen.items():
        start = time.perf_counter()
        outcome = protocol.run(data, device)
        result = Result(
            protocol=name,
            metric=protocol.metric,
            **vars(outcome),
            config=dataclasses.asdict(getattr(options, name)),
            seconds=round(time.perf_counter() - start, 3),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(),
            **shared,
        )
        if out is not None:
            result.write(out)
        results.append(result)
    return results


def _shared(
    source: Source,
    datasets: Mapping[str, ImageDataset],
    banks: Mapping[str, FeatureBank],
    preparation: Preparation,
    precision: torch.dtype,
) -> dict[str, Any]:
    """What every result of an evaluation says alike."""
    given = {key: getattr(preparation, key) for key in ("mean", "std", "resize", "size")}
    return {
        "data": datasets["train"].name,
        "source": source.name,
        "sizes": {**{s: len(banks[s]) for s in SPLITS}, "features": banks["train"].pooled.shape[1]},
        "backbone": dict(source.backbone.config.as_dict()),
        "checkpoint": {
            "name": source.name,
            "path": source.checkpoint_path,
            "sha256": source.checkpoint_sha256,
        },
        "input": {**given, "precision": "bf16" if precision == torch.bfloat16 else "fp32"},
        "data_fingerprint": " ".join(f"{s}:{datasets[s].fingerprint()}" for s in SPLITS),
    }


def _protocols(names: Sequence[str], options: EvalConfig) -> dict[str, Protocol]:
    if not names:
        raise UserError(f"no protocol given: choose from {', '.join(PROTOCOLS.names())}")
    for name in names:
        if name not in PROTOCOLS.names():
            raise unknown("protocol", name, PROTOCOLS.names())
    return {name: PROTOCOLS.entry(name).factory(getattr(options, name)) for name in names}


def _check_data(protocols: Mapping[str, Protocol], datasets: Mapping[str, ImageDataset]) -> None:
    for split, dataset in datasets.items():
        has = {"labels": dataset.classes is not None, "masks": dataset.mask_classes is not None}
        for name, protocol in protocols.items():
            for need in protocol.needs:
                if not has[need]:
                    able = [n for n in protocols if all(has[x] for x in protocols[n].needs)]
                    hint = f"leave it out ({','.join(able)})" if able else "use data that has them"
                    where = "" if split == "train" else f" in its {split} split"
                    raise UserError(f"{name} needs {need}: data set {dataset.name} has none{where}; {hint}")


def _preparation(source: Source, dataset: ImageDataset, options: EvalConfig) -> Preparation:
    config = dataset.config
    mean, std = source.preprocessing.get("mean", config.mean), source.preprocessing.get("std", config.std)
    channels = source.backbone.config.in_channels
    if not len(mean) == len(std) == channels == dataset.in_channels:
        raise UserError(
            f"{source.name} takes {channels} channels (mean of {len(mean)}, std of {len(std)}), the images "
            f"of {dataset.name} have {dataset.in_channels}: use other data or another backbone"
        )
    return Preparation(
        [float(x) for x in mean],
        [float(x) for x in std],
        config.eval_resize,
        config.eval_size,
        options.batch_size,
        options.workers,
    )


def _eval_data(
    banks: Mapping[str, FeatureBank], datasets: Mapping[str, ImageDataset], preparation: Preparation
) -> EvalData:
    def test_images(indices: Sequence[int]) -> Tensor:
        return eval_images(datasets["test"], indices, preparation)

    train = datasets["train"]
    return EvalData(banks["train"], banks["val"], banks["test"], train.classes, train.mask_classes, test_images)
