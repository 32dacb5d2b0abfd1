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
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit.criteria.distributed import rank
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import SPLITS, ImageDataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.clustering import ClusteringConfig
from ssl_toolkit.evaluation.detection import DetectionConfig, DetectionFinetuneConfig
from ssl_toolkit.evaluation.extraction import Extraction, FeaturesConfig
from ssl_toolkit.evaluation.features import FeatureBank, Preparation
from ssl_toolkit.evaluation.finetune import FinetuneConfig
from ssl_toolkit.evaluation.knn import KnnConfig
from ssl_toolkit.evaluation.linear import LinearConfig
from ssl_toolkit.evaluation.linear_augmented import LinearAugmentedConfig
from ssl_toolkit.evaluation.local_matching import MatchingConfig
from ssl_toolkit.evaluation.match_rules import MatchRulesConfig
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Protocol
from ssl_toolkit.evaluation.results import Result
from ssl_toolkit.evaluation.segmentation import SegmentationAugmentedConfig, SegmentationConfig
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.spectrum import SpectrumConfig
from ssl_toolkit.hardware import pick_device, pick_precision
from ssl_toolkit.processes.world import current_world, from_first, process_device
from ssl_toolkit.registry import typed

UNFINISHED = ".unfinished"
"""Folder beside the results for work that was stopped."""

SAME_IMAGES = "val and test are the same images here: what was chosen on val was chosen on what is reported"

COMPOSED = ("data", "backbone", "scale")
"""Groups that the command line composes into the same config; read by `Source` and `evaluate`, not here."""


@dataclass
class EvalConfig:
    """The keys of ``configs/eval.yaml``.

    Attributes:
        run: run folder to evaluate.
        checkpoint: exported weights or a training checkpoint to evaluate.
        zoo: published checkpoint to evaluate.
        out: folder for the results.
        seed: of an untrained backbone.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        devices: processes on this machine; 0 is one for each GPU. Results do not depend on it.
        precision: of the forward pass: ``auto``, ``bf16`` or ``fp32``. Heads are trained in float32.
        batch_size: images a forward pass.
        workers: processes that read images; 0 reads them in this one.
        features: where extracted features are kept.
        knn and the others: options of the protocol of that name.
    """

    run: str | None = None
    checkpoint: str | None = None
    zoo: str | None = None
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 0
    precision: str = "auto"
    batch_size: int = 256
    workers: int = 0
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    linear_augmented: LinearAugmentedConfig = field(default_factory=LinearAugmentedConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    segmentation_augmented: SegmentationAugmentedConfig = field(default_factory=SegmentationAugmentedConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    detection_finetune: DetectionFinetuneConfig = field(default_factory=DetectionFinetuneConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    match_rules: MatchRulesConfig = field(default_factory=MatchRulesConfig)
    spectrum: SpectrumConfig = field(default_factory=SpectrumConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or self.devices < 0:
            raise ValueError("batch_size must be 1 or more, workers and devices 0 or more")


def eval_config(options: EvalConfig | Mapping[str, Any] | DictConfig) -> EvalConfig:
    """Options with every key and value checked; the groups ``data`` and ``backbone`` beside them are left.

    Raises:
        UserError: an unknown key or a bad value.
    """
    if isinstance(options, EvalConfig):
        return options
    if isinstance(options, DictConfig):  # a scale's values may refer to the data, which is left here
        options = OmegaConf.to_container(options, resolve=True)  # type: ignore[assignment]
    return typed(EvalConfig, {str(k): v for k, v in options.items() if k not in COMPOSED}, "eval")


def evaluate(
    protocols: Sequence[str],
    source: Source,
    data_config: Mapping[str, Any] | DictConfig,
    options: EvalConfig | Mapping[str, Any] | DictConfig,
    out: Path | None = None,
    console: Console | None = None,
) -> list[Result]:
    """Run ``protocols`` on the frozen backbone of ``source``.

    Args:
        protocols: names of `PROTOCOLS`.
        data_config: key ``name`` and the options of the data set.
        out: folder for ``<protocol>-<data>.json`` and examples; None writes nothing. Each is written as soon
            as its protocol ends.
        console: where progress is shown.

    Raises:
        UserError: an unknown protocol, data without the labels or masks that a protocol needs, or a backbone
            that does not fit the data; all of this before any image goes through the backbone.
    """
    options = eval_config(options)
    chosen_protocols(protocols, options)  # an unknown name stops before data is made
    datasets = {split: build_dataset(data_config, split) for split in SPLITS}
    return evaluate_on(protocols, source, datasets, options, out, console)


def evaluate_on(
    protocols: Sequence[str],
    source: Source,
    datasets: Mapping[str, ImageDataset],
    options: EvalConfig,
    out: Path | None = None,
    console: Console | None = None,
) -> list[Result]:
    """`evaluate` on data sets that are already built, one for each of `SPLITS`."""
    chosen = chosen_protocols(protocols, options)
    _check_data(chosen, datasets)
    for protocol in chosen.values():
        protocol.check(source, datasets)
    preparation = _preparation(source, datasets["train"], options)
    device = process_device(pick_device(options.device), current_world())
    precision = pick_precision(options.precision, device)
    prints = {split: datasets[split].fingerprint() for split in SPLITS}
    fingerprint = " ".join(f"{split}:{value}" for split, value in prints.items())
    start = time.perf_counter()
    weights = source.weights_digest()
    extraction = Extraction(
        source, preparation, device, precision, weights, prints, options.features, console or Console()
    )
    data = EvalData(
        source,
        datasets,
        _extract(chosen, datasets, extraction),
        preparation,
        device,
        precision,
        identity=f"{weights} {fingerprint} {_input(preparation)} {precision}",
        state=None if out is None else out / UNFINISHED,
        console=console,
    )
    shared = {**_shared(data, fingerprint), "extraction_seconds": round(time.perf_counter() - start, 3)}
    results = []
    for name, protocol in chosen.items():
        result = _run(name, protocol, data, shared, prints["val"] == prints["test"])
        if out is not None and rank() == 0:
            result.write(out)
        results.append(result)
    return results


def _run(name: str, protocol: Protocol, data: EvalData, shared: Mapping[str, Any], same_images: bool) -> Result:
    start = time.perf_counter()
    outcome = protocol.run(data) if protocol.parallel else from_first(lambda: protocol.run(data))
    if same_images and len(outcome.grid) > 1 and any(key.startswith("val_") for key in outcome.grid[0]):
        outcome.notes.append(SAME_IMAGES)
    return Result(
        protocol=name,
        variant=protocol.variant,
        metric=protocol.metric,
        **vars(outcome),
        config=dataclasses.asdict(protocol.options),
        seconds=round(time.perf_counter() - start, 3),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(),
        **shared,
    )


def _extract(
    protocols: Mapping[str, Protocol],
    datasets: Mapping[str, ImageDataset],
    extraction: Extraction,
) -> dict[str, FeatureBank]:
    """Features of the splits that are read, with all that any protocol reads of them."""
    wanted: dict[str, frozenset[str]] = dict.fromkeys(SPLITS, frozenset())
    for protocol in protocols.values():
        for split, parts in protocol.reads(extraction.source).items():
            wanted[split] |= parts
    return extraction.run(datasets, wanted)


def _shared(data: EvalData, fingerprint: str) -> dict[str, Any]:
    """What every result of an evaluation says alike."""
    source, preparation = data.source, data.preparation
    return {
        "data": data.datasets["train"].name,
        "source": source.name,
        "sizes": {**{s: len(data.datasets[s]) for s in SPLITS}, "features": source.backbone.num_features},
        "backbone": dict(source.backbone.config.as_dict()),
        "checkpoint": {
            "name": source.name,
            "path": source.checkpoint_path,
            "sha256": source.checkpoint_sha256,
        },
        "input": {**_input(preparation), "precision": "bf16" if data.precision == torch.bfloat16 else "fp32"},
        "data_fingerprint": fingerprint,
    }


def _input(preparation: Preparation) -> dict[str, Any]:
    """What images become, whichever way they are read."""
    return {key: getattr(preparation, key) for key in ("mean", "std", "resize", "size")}


def chosen_protocols(names: Sequence[str], options: EvalConfig) -> dict[str, Protocol]:
    """The protocols of these names with their options; none, or an unknown one, is a `UserError`."""
    if not names:
        raise UserError(f"no protocol given: choose from {', '.join(PROTOCOLS.names())}")
    for name in names:
        if name not in PROTOCOLS.names():
            raise unknown("protocol", name, PROTOCOLS.names())
    return {name: PROTOCOLS.entry(name).factory(getattr(options, name)) for name in names}


def _check_data(protocols: Mapping[str, Protocol], datasets: Mapping[str, ImageDataset]) -> None:
    for split, dataset in datasets.items():
        has = {
            "labels": dataset.classes is not None,
            "masks": dataset.mask_classes is not None,
            "objects": dataset.object_classes is not None,
        }
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
