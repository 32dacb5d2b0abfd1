"""The whole evaluation: one extraction, files that say everything, errors before any work."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

import ssl_toolkit.configs
from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.config import choices, compose_config
from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import (
    PROTOCOLS,
    EvalConfig,
    KnnConfig,
    LinearConfig,
    SegmentationConfig,
    Source,
    calibrate_batchnorm,
    eval_config,
    evaluate,
    evaluate_on,
    extraction,
    summary_table,
)
from ssl_toolkit.evaluation import suite as suite_module
from ssl_toolkit.evaluation.extraction import Extraction
from ssl_toolkit.reporting.masks import read_examples
from ssl_toolkit.reporting.runs import read_result
from tests.data.sets import test_ade20k
from tests.evaluation.fakes import ArrayDataset, ColourBackbone, colour_blocks

ALL = ["knn", "linear", "segmentation"]
QUICK = EvalConfig(
    device="cpu",
    precision="fp32",
    batch_size=16,
    knn=KnnConfig(ks=[1, 5], temperatures=[0.07]),
    linear=LinearConfig(lrs=[0.1, 1.0], epochs=20),
    segmentation=SegmentationConfig(features="last", lrs=[0.03, 0.3], iterations=150),
)
SPLITS = {"train": 48, "val": 24, "test": 24}


def datasets() -> dict[str, ArrayDataset]:
    return {split: colour_blocks(count, split) for split, count in SPLITS.items()}


def colours(**changes: Any) -> Source:
    return dataclasses.replace(Source(ColourBackbone(), {}, "colours", "weights.safetensors", "ab12"), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, dict[str, ArrayDataset]]:
    run = tmp_path_factory.mktemp("run")
    data = datasets()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_TOOLKIT_CACHE", str(run / "cache"))  # no features from before
        return run, evaluate_on(ALL, colours(), data, QUICK, run / "results"), data


def test_colours_are_found_by_every_protocol(finished: tuple) -> None:
    metrics = {result.protocol: result.metrics for result in finished[1]}
    assert metrics["knn"]["top1"] == metrics["linear"]["top1"] == 100
    assert metrics["segmentation"]["pixel_accuracy"] > 90


def test_one_extraction_serves_all_protocols(finished: tuple) -> None:
    reads = {split: data.reads for split, data in finished[2].items()}
    examples = QUICK.segmentation.examples
    some = extraction.READ  # that tell one data set from another
    assert reads == {"train": 48 + some, "val": 24 + some, "test": 24 + some + examples}


def test_a_result_file_says_everything(finished: tuple) -> None:
    run, results, _ = finished
    for result in results:
        raw = json.loads((run / "results" / f"{result.protocol}-arrays.json").read_text())
        assert raw == json.loads(json.dumps(result.as_dict()))
        assert raw["metrics"][raw["metric"]] == result.metrics[result.metric]
        assert all(0 <= value <= 100 for value in raw["metrics"].values())
        assert raw["config"] == dataclasses.asdict(getattr(QUICK, result.protocol))
        assert raw["backbone"]["name"] == "colour-test"
        assert raw["checkpoint"] == {"name": "colours", "path": "weights.safetensors", "sha256": "ab12"}
        assert raw["data_fingerprint"].startswith("train:train-")
        assert raw["sizes"] == {**SPLITS, "features": 3}
        assert raw["input"] == {"mean": [0.5] * 3, "std": [0.25] * 3, "resize": 16, "size": 16, "precision": "fp32"}
        assert raw["seconds"] > 0
        assert raw["extraction_seconds"] > 0
        created = datetime.datetime.fromisoformat(raw["created"])
        assert created.utcoffset() == datetime.timedelta(0)
        assert all(any(k.startswith("val_") for k in row) for row in raw["grid"])
        assert all(any(k.startswith("test_") for k in row) for row in raw["grid"])
    names = sorted(path.name for path in (run / "results").iterdir())
    assert names == [*(f"{name}-arrays.json" for name in ALL[:2]), *("segmentation-arrays-examples.npz",),
                     "segmentation-arrays.json"]  # fmt: skip


def test_reporting_reads_what_is_written(finished: tuple) -> None:
    run, results, data = finished
    for result in results:
        read = read_result(run / "results" / f"{result.protocol}-arrays.json")
        assert read.metrics == result.metrics
        assert read.selected == result.selected
        assert read.data_fingerprint == result.data_fingerprint
        assert read.checkpoint == "colours"
    (examples,) = read_examples(run)
    index = np.linspace(0, 23, 8).round().astype(int)
    assert np.array_equal(examples.image, data["test"].images[index])
    assert np.array_equal(examples.mask, data["test"].masks[index])
    assert (examples.prediction == examples.mask).mean() > 0.9
    assert examples.classes == ("class0", "class1", "class2")


def test_the_table_names_protocol_metric_choice_and_sizes(finished: tuple) -> None:
    console = Console(width=200, record=True)
    console.print(summary_table(finished[1]))
    text = console.export_text()
    for words in (
        "knn",
        "top-1 100.0",
        "mIoU",
        "foreground mIoU",
        "lr ",
        "k 1",
        "48 / 24 / 24 images",
        "colours on arrays",
    ):
        assert words in text


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate_on(["knn"], colours(), datasets(), QUICK)
    assert list(tmp_path.iterdir()) == []


def test_maps_are_extracted_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Mapping[str, frozenset[str]]] = []
    original = Extraction.run

    def spy(self: Extraction, data: Any, wanted: Mapping[str, frozenset[str]]) -> Any:
        asked.append(wanted)
        return original(self, data, wanted)

    monkeypatch.setattr(Extraction, "run", spy)
    evaluate_on(["knn"], colours(), datasets(), QUICK)
    assert asked == [dict.fromkeys(SPLITS, frozenset({"pooled"}))]


@pytest.mark.parametrize(
    ("protocols", "words"),
    [
        (["lineer"], "unknown protocol 'lineer': did you mean 'linear'"),
        (["knn", "detect"], "unknown protocol 'detect'"),
        ([], "no protocol given: choose from .*knn, linear, .*segmentation"),
    ],
)
def test_unknown_protocols_stop_before_data_is_made(
    protocols: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: Mapping[str, Any], split: str) -> ArrayDataset:
        raise AssertionError

    monkeypatch.setattr(suite_module, "build_dataset", never)
    with pytest.raises(UserError, match=words):
        evaluate(protocols, colours(), {"name": "arrays"}, QUICK)


@pytest.mark.parametrize(
    ("protocols", "missing", "words"),
    [
        (["knn"], "classes", "knn needs labels: data set arrays has none; use data that has them"),
        (["linear", "segmentation"], "mask_classes", r"segmentation needs masks: .* leave it out \(linear\)"),
        (["segmentation", "knn"], "classes", r"knn needs labels: .* leave it out \(segmentation\)"),
    ],
)
def test_data_without_what_a_protocol_needs(protocols: list[str], missing: str, words: str) -> None:
    data = datasets()
    for split in data.values():
        setattr(split, missing, None)
    with pytest.raises(UserError, match=words):
        evaluate_on(protocols, colours(), data, QUICK)
    assert sum(split.reads for split in data.values()) == 0


def test_labels_that_one_split_lacks() -> None:
    data = datasets()
    data["val"].classes = None
    with pytest.raises(UserError, match="knn needs labels: data set arrays has none in its val split"):
        evaluate_on(["knn"], colours(), data, QUICK)


def test_masks_without_labels_are_enough_for_segmentation() -> None:
    data = {split: colour_blocks(count, split, labels=False) for split, count in SPLITS.items()}
    (result,) = evaluate_on(["segmentation"], colours(), data, QUICK)
    assert result.metrics["pixel_accuracy"] > 90


def test_other_channels_than_the_backbone_are_refused() -> None:
    gray = {split: ArrayDataset(np.zeros((4, 16, 16, 1), np.uint8), [0, 1, 2, 0], None, split) for split in SPLITS}
    with pytest.raises(UserError, match=r"colours takes 3 channels .* arrays have 1"):
        evaluate_on(["knn"], colours(), gray, QUICK)


def test_preprocessing_of_the_source_wins_over_that_of_the_data() -> None:
    source = colours(preprocessing={"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]})
    (result,) = evaluate_on(["knn"], source, datasets(), QUICK)
    assert result.input["mean"] == [0.1, 0.2, 0.3]


def test_the_yaml_holds_every_option_with_its_default() -> None:
    written = OmegaConf.to_container(compose_config("eval"))
    assert isinstance(written, dict)
    assert written == OmegaConf.to_container(OmegaConf.structured(EvalConfig))
    assert set(PROTOCOLS.names()) == set(choices("protocol")) <= set(written)


@pytest.mark.parametrize("name", ["eval", *(f"protocol/{name}" for name in choices("protocol"))])
def test_every_option_has_a_comment(name: str) -> None:
    path = Path(ssl_toolkit.configs.__file__).parent / f"{name}.yaml"
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    options = [line for line in lines if not line.startswith((" ", "-", "defaults"))]
    assert all(" # " in line for line in options), options


@pytest.mark.parametrize("name", choices("scale"))
def test_scales_change_options_of_protocols_alone(name: str) -> None:
    plain, scaled = (OmegaConf.to_container(compose_config("eval", given)) for given in ([], [f"scale={name}"]))
    assert isinstance(plain, dict)
    assert isinstance(scaled, dict)
    assert {key for key in plain if plain[key] != scaled[key]} <= set(PROTOCOLS.names())
    eval_config(compose_config("eval", [f"scale={name}"]))


def test_the_config_is_strict_and_passes_over_composed_groups() -> None:
    options = eval_config({"batch_size": 8, "knn": {"ks": [3]}, "data": {"name": "x"}, "backbone": None})
    assert options.batch_size == 8
    assert options.knn == KnnConfig(ks=[3])
    with pytest.raises(UserError, match=r"unknown key 'eval\.linear\.epoch': did you mean 'epochs'"):
        eval_config({"linear": {"epoch": 3}})
    with pytest.raises(UserError, match=r"unknown key 'eval\.batchsize': did you mean 'batch_size'"):
        eval_config({"batchsize": 3})
    with pytest.raises(UserError, match="batch_size must be 1 or more"):
        eval_config({"batch_size": 0})


def test_an_untrained_network_on_digit_scenes(tmp_path: Path) -> None:
    config = {"name": "digit_scenes", "train_size": 96, "val_size": 32, "test_size": 32}
    torch.manual_seed(0)
    backbone = create_backbone("tiny_resnet")
    train = suite_module.build_dataset(config, "train")
    source = Source(backbone, {}, "untrained")
    preparation = suite_module._preparation(source, train, QUICK)
    assert calibrate_batchnorm(backbone, train, preparation, device=torch.device("cpu"), images=64) > 4
    first = evaluate(ALL, source, config, QUICK, tmp_path)
    second = evaluate(ALL, source, config, dataclasses.replace(QUICK, batch_size=7))
    for a, b in zip(first, second):
        assert a.metrics == pytest.approx(b.metrics, abs=4)
        assert a.data_fingerprint == b.data_fingerprint
    assert first[2].metrics["miou"] > 5
    assert backbone.training


def test_a_note_says_where_val_is_test(tmp_path: Path) -> None:
    same = datasets() | {"val": colour_blocks(SPLITS["test"], "test")}
    assert same["val"].fingerprint() == same["test"].fingerprint()
    (plain,) = evaluate_on(["knn"], colours(), datasets(), QUICK)
    (noted,) = evaluate_on(["knn"], colours(), same, QUICK)
    own = dataclasses.replace(QUICK, knn=dataclasses.replace(QUICK.knn, leave_one_out=True))
    (trained,) = evaluate_on(["knn"], colours(), same, own)
    assert suite_module.SAME_IMAGES not in plain.notes
    assert suite_module.SAME_IMAGES in noted.notes
    assert suite_module.SAME_IMAGES not in trained.notes


def test_published_sets_without_test_labels_are_noticed(tmp_path: Path) -> None:
    test_ade20k.tree(tmp_path)
    prints = [
        build_dataset({"name": "ade20k", "root": str(tmp_path)}, split).fingerprint() for split in ("val", "test")
    ]
    assert prints[0] == prints[1]
