"""Segmentation on cached features against a 1x1 convolution with `interpolate`, trained alone at full resolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import FeatureBank, SegmentationConfig, Source
from ssl_toolkit.evaluation.features import VOID
from ssl_toolkit.evaluation.heads import Heads, Standardizer, batches
from ssl_toolkit.evaluation.protocol import MAPS, STAGES
from ssl_toolkit.evaluation.segmentation import Segmentation
from ssl_toolkit.evaluation.segmentation.cached import (
    MaskedMaps,
    evaluate_segmentation,
    pixel_loss,
    predict,
    train_segmentation,
)
from ssl_toolkit.evaluation.segmentation.pixels import cell_logits, interpolation, pixel_logits
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.registry import typed
from tests.evaluation.fakes import CPU, ColourBackbone, eval_data


def problem(count: int = 12, seed: int = 0, height: int = 3, width: int = 4, scale: int = 4) -> FeatureBank:
    """Random maps of 5 channels and masks of 3 classes that follow them, some pixels void."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, 5, height, width, generator=generator)
    masks = maps[:, :3].argmax(1).repeat_interleave(scale, 1).repeat_interleave(scale, 2).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = VOID
    return FeatureBank(maps.mean((2, 3)), maps, None, masks)


def last(bank: FeatureBank) -> MaskedMaps:
    return MaskedMaps.of(bank, "last")


def random_heads(count: int = 2, seed: int = 0, features: int = 5) -> Heads:
    heads = Heads(count, features, 3)
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return heads


def reference(heads: Heads, head: int, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits ``(B, K, R, S)`` of one head by convolution and interpolation."""
    logits = F.conv2d(maps, heads.weights[head][:, :, None, None], heads.biases[head])
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def test_interpolation_weights_in_closed_form() -> None:
    # Centres of 4 pixels over 2 cells lie at -0.25, 0.25, 0.75, 1.25 cells; outside there is only the edge cell.
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert torch.allclose(interpolation(2, 4), torch.tensor(expected))
    assert torch.equal(interpolation(5, 5), torch.eye(5))


@pytest.mark.parametrize("size", [(12, 16), (7, 30), (3, 4)])
def test_pixel_logits_equal_convolution_and_interpolation(size: tuple[int, int]) -> None:
    heads, maps = random_heads(), problem().maps
    got = pixel_logits(heads, [maps], interpolation(3, size[0])[1::2], interpolation(4, size[1])[::3])
    for head in range(2):
        expected = reference(heads, head, maps, size)[:, :, 1::2, ::3]
        assert torch.allclose(got[:, head].transpose(0, 1), expected, atol=1e-5)


def pyramid(count: int = 12, seed: int = 0) -> FeatureBank:
    """Stages at 8x8, 4x4, 4x4 and 2x2 whose sum of upsampled maps decides the mask, so that no stage alone does."""
    generator = torch.Generator().manual_seed(seed)
    stages = tuple(
        torch.randn(count, channels, side, side, generator=generator)
        for channels, side in ((3, 8), (4, 4), (3, 4), (5, 2))
    )
    total = sum(F.interpolate(stage[:, :3], size=(8, 8), mode="bilinear") for stage in stages)
    masks = total.argmax(1).to(torch.uint8)
    return FeatureBank(stages[-1].mean((2, 3)), None, None, masks, stages)


def test_stages_are_joined_as_if_they_were_concatenated() -> None:
    stages, heads = pyramid().stages, random_heads(features=15)
    joined = torch.cat([F.interpolate(stage, size=(8, 8), mode="bilinear") for stage in stages], 1)
    got = cell_logits(heads, stages)
    pixels = pixel_logits(heads, stages, interpolation(8, 20), interpolation(8, 16))
    for head in range(2):
        assert torch.allclose(got[:, head].transpose(0, 1), reference(heads, head, joined, (8, 8)), atol=1e-5)
        assert torch.allclose(pixels[:, head].transpose(0, 1), reference(heads, head, joined, (20, 16)), atol=1e-5)


def test_stages_see_what_the_last_map_does_not() -> None:
    bank = pyramid(60)
    whole = FeatureBank(bank.pooled, bank.stages[-1], None, bank.masks, bank.stages)
    options = {"lrs": [0.03, 0.1], "iterations": 200, "pixel_stride": 2}
    scores = {}
    for features in ("last", "stages", "auto"):
        protocol = Segmentation(SegmentationConfig(features=features, **options))
        scores[features] = protocol.run(eval_data(whole, whole, whole, 3, pixels=8)).metrics["miou"]
        assert protocol.options.features == ("last" if features == "auto" else features)  # a backbone with BatchNorm
    assert scores["stages"] > 90
    assert scores["last"] < 60
    assert scores["auto"] == scores["last"]


@pytest.mark.parametrize(
    ("norm", "features", "read"),
    [("batch", "auto", MAPS), ("layer", "auto", STAGES), ("layer", "last", MAPS), ("batch", "stages", STAGES)],
)
def test_which_features_are_read(norm: str, features: str, read: str) -> None:
    backbone = ColourBackbone()
    backbone.norm = norm
    reads = Segmentation(SegmentationConfig(features=features)).reads(Source(backbone, {}, "made up"))
    assert set(reads) == {"train", "val", "test"}
    assert all(parts & {MAPS, STAGES} == {read} for parts in reads.values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_heads_equal_a_convolution_trained_alone_on_all_pixels(optimizer: str) -> None:
    bank, lrs, steps = problem(), [0.01, 0.1], 25
    options = SegmentationConfig(
        lrs=lrs, optimizer=optimizer, iterations=steps, batch_size=5, weight_decay=0.05, pixel_stride=1, seed=2
    )
    norm = Standardizer.fit(bank.maps)
    heads = train_segmentation(last(bank), 3, options, [norm], CPU)
    for i, lr in enumerate(lrs):
        layer = nn.Conv2d(5, 3, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        groups = [
            {"params": [layer.weight], "weight_decay": 0.05},
            {"params": [layer.bias], "weight_decay": 0.0},
        ]
        single = (
            torch.optim.AdamW(groups, lr=lr) if optimizer == "adamw" else torch.optim.SGD(groups, lr=lr, momentum=0.9)
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(single, steps)
        for rows in batches(12, 5, steps, seed=2):
            logits = F.interpolate(layer(norm(bank.maps[rows])), size=(12, 16), mode="bilinear", align_corners=False)
            single.zero_grad()
            F.cross_entropy(logits, bank.masks[rows].long(), ignore_index=VOID).backward()
            single.step()
            schedule.step()
        assert torch.allclose(heads.weights[i], layer.weight[:, :, 0, 0], atol=1e-4)
        assert torch.allclose(heads.biases[i], layer.bias, atol=1e-4)


def test_every_pixel_counts_alike_under_a_stride() -> None:
    bank = problem()
    masks = bank.masks.clamp_max(2)  # no void: every offset has as many pixels
    rows, columns = interpolation(3, 12), interpolation(4, 16)

    def gradient(stride: int, y: int, x: int) -> torch.Tensor:
        heads = random_heads()
        every = slice(y, None, stride), slice(x, None, stride)
        pixel_loss(heads, [bank.maps], masks, rows, columns, every).backward()
        return heads.weights[0].grad

    full = random_heads()
    loss = F.cross_entropy(reference(full, 0, bank.maps, (12, 16)), masks.long())
    expected = torch.autograd.grad(loss, full.weights[0])[0]
    strided = torch.stack([gradient(4, y, x) for y in range(4) for x in range(4)]).mean(0)
    assert torch.allclose(strided, expected, atol=1e-6)
    assert torch.allclose(gradient(1, 0, 0), expected, atol=1e-6)


def test_a_head_does_not_depend_on_its_neighbours_even_if_they_diverge() -> None:
    bank = problem()
    norm = Standardizer.fit(bank.maps)
    common = {"iterations": 30, "batch_size": 4, "optimizer": "sgd"}
    alone = train_segmentation(last(bank), 3, SegmentationConfig(lrs=[0.1], **common), [norm], CPU)
    beside = SegmentationConfig(lrs=[1e38, 0.01, 0.1], **common)
    together = train_segmentation(last(bank), 3, beside, [norm], CPU)
    assert torch.allclose(alone.weights[0], together.weights[2], atol=1e-6)
    assert together.diverged() == [True, False, False]
    outcome = Segmentation(beside).run(eval_data(bank, bank, bank, 3, pixels=12))
    assert outcome.grid[0]["val_miou"] is None
    assert outcome.grid[0]["diverged"] is True
    assert outcome.selected["lr"] in (0.01, 0.1)


def test_metrics_are_over_all_pixels_at_mask_resolution() -> None:
    bank, heads = problem(), random_heads()
    norm = Standardizer.fit(bank.maps, enabled=False)
    with progress_bar("test", len(bank)) as bar:
        got = evaluate_segmentation(heads, last(bank), 3, [norm], CPU, bar)
    for head in range(2):
        prediction = reference(heads, head, bank.maps, (12, 16)).argmax(1)
        counts = torch.zeros(3, 3, dtype=torch.int64)
        for truth, predicted in zip(bank.masks.flatten().tolist(), prediction.flatten().tolist()):
            if truth != VOID:
                counts[truth, predicted] += 1
        assert torch.equal(got[head], counts)
    assert torch.equal(
        predict(heads, [bank.maps], [norm], interpolation(3, 12), interpolation(4, 16))[1],
        reference(heads, 1, bank.maps, (12, 16)).argmax(1),
    )


def planted(shuffled: bool) -> FeatureBank:
    """Cells that say their class, in masks of the maps' own size; or of another image if ``shuffled``."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (60, 6, 6), generator=generator)
    maps = F.one_hot(masks, 4).permute(0, 3, 1, 2).float()
    order = torch.randperm(60, generator=generator)
    return FeatureBank(maps.mean((2, 3)), maps, None, (masks[order] if shuffled else masks).to(torch.uint8))


def test_planted_answers() -> None:
    options = SegmentationConfig(lrs=[0.03, 0.1], iterations=150, pixel_stride=1)
    bank = planted(shuffled=False)
    right = Segmentation(options).run(eval_data(bank, bank, bank, 4, pixels=6))
    assert right.metrics == {"miou": 100.0, "foreground_miou": 100.0, "pixel_accuracy": 100.0}
    assert set(right.details["per_class_iou"].values()) == {100.0}
    noise = planted(shuffled=True)
    chance = Segmentation(options).run(eval_data(noise, noise, noise, 4, pixels=6))
    assert chance.metrics["pixel_accuracy"] < 40


def test_lr_is_chosen_on_validation_and_reported_on_test() -> None:
    train, val, test = problem(20, 0), problem(8, 1), problem(8, 2)
    val = FeatureBank(val.pooled, val.maps, None, val.masks.roll(1, 0))
    options = SegmentationConfig(lrs=[1e-4, 1e-3, 1e-2, 1e-1], iterations=40)
    outcome = Segmentation(options).run(eval_data(train, val, test, 3, pixels=12))
    row = max(outcome.grid, key=lambda r: r["val_miou"])
    assert outcome.selected == {"lr": row["lr"]}
    assert outcome.metrics["miou"] == row["test_miou"]


def test_absent_classes_are_noted_and_have_no_iou() -> None:
    bank = planted(shuffled=False)
    bank.masks[bank.masks == 3] = VOID
    options = SegmentationConfig(lrs=[0.1], iterations=100, pixel_stride=1)
    outcome = Segmentation(options).run(eval_data(bank, bank, bank, 5, pixels=6))
    assert outcome.details["per_class_iou"]["class4"] is None
    assert "2 of 5 classes have no test pixel: class3, class4" in outcome.notes
    assert outcome.metrics["miou"] == 100.0


def test_examples_are_spread_over_the_test_split() -> None:
    bank = problem(50, height=3, width=3)
    outcome = Segmentation(SegmentationConfig(lrs=[0.1], iterations=5, examples=8)).run(
        eval_data(bank, bank, bank, 3, pixels=12)
    )
    kept = outcome.examples
    assert kept["index"].tolist() == [0, 7, 14, 21, 28, 35, 42, 49]
    assert kept["image"].shape == (8, 12, 12, 3)
    assert kept["image"].dtype == kept["mask"].dtype == kept["prediction"].dtype == np.uint8
    assert np.array_equal(kept["mask"], bank.masks[kept["index"]].numpy())
    assert kept["classes"].tolist() == ["class0", "class1", "class2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"features": "stage"}, "did you mean 'stages'"),
        ({"iterations": 0}, "iterations, batch_size and pixel_stride"),
        ({"examples": -1}, "examples"),
        ({"lrs": [0.0]}, "lrs must"),
        ({"iteration": 3}, "did you mean 'iterations'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(SegmentationConfig, options, "segmentation")


def test_a_stride_above_the_mask_still_trains() -> None:
    bank = planted(shuffled=False)
    options = SegmentationConfig(lrs=[0.1], iterations=300, pixel_stride=64)
    outcome = Segmentation(options).run(eval_data(bank, bank, bank, 4, pixels=6))
    assert outcome.metrics["miou"] > 90
