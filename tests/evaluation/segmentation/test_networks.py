"""Heads against plain convolutions on the joined map, norms of many processes against one, dilation, schedules."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.criteria.distributed import rank, sum_over_ranks, world_size
from ssl_toolkit.data.base import VOID
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.live import sum_gradients
from ssl_toolkit.evaluation.segmentation.augmented import crop_loss
from ssl_toolkit.evaluation.segmentation.networks import (
    FcnHeads,
    GlobalBatchNorm2d,
    LinearHeads,
    Segmenter,
    keep_channels,
    own_backbone,
    use_global_norms,
)
from ssl_toolkit.evaluation.segmentation.settings import SegmentationAugmentedConfig, decided
from tests.criteria.test_distributed import spawn, start
from tests.evaluation.fakes import colour_blocks

CHANNELS = (3, 4, 5)


def levels(batch: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 + 3 * torch.randn(batch, c, side, side, generator=generator) for c, side in zip(CHANNELS, (8, 4, 2))]


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)


def joined(maps: list[Tensor]) -> Tensor:
    return torch.cat([F.interpolate(x, size=maps[0].shape[2:], mode="bilinear") for x in maps], 1)


@pytest.mark.parametrize("norm", [True, False])
def test_linear_heads_are_convolutions_on_the_joined_map(norm: bool) -> None:
    heads, maps = LinearHeads(2, CHANNELS, 6, norm, 0.0), levels()
    randomise(heads)
    got = heads(maps)
    assert got.shape == (6, 2, 4, 8, 8)
    normal = [F.batch_norm(x, None, None, training=True) for x in maps] if norm else maps
    for head in range(2):
        weight = heads.heads.weights[head][:, :, None, None]
        expected = F.conv2d(joined(normal), weight, heads.heads.biases[head])
        assert torch.allclose(got[:, head].transpose(0, 1), expected, atol=1e-4)
    again = heads.eval()(maps)
    assert torch.allclose(again, heads(maps))
    assert torch.equal(again, got) is not norm  # running statistics, after one batch


def test_fcn_heads_start_alike_and_do_not_meet() -> None:
    heads, maps = FcnHeads(2, CHANNELS, 6, 0.0), levels()
    got = heads(maps)
    assert got.shape == (6, 2, 4, 8, 8)
    assert torch.equal(got[:, 0], got[:, 1])
    gradients = torch.autograd.grad(got[:, 0].square().sum(), list(heads.heads[1].parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert heads.heads[0].join[0].weight.shape == (512, 512 + 12, 3, 3)
    head = heads.heads[0].eval()
    x = joined(maps)

    def block(unit: nn.Sequential, value: Tensor) -> Tensor:
        conv, bn = unit[0], unit[1]
        value = F.conv2d(value, conv.weight, padding=1)
        return F.relu(F.batch_norm(value, bn.running_mean, bn.running_var, bn.weight, bn.bias))

    hidden = block(head.join, torch.cat([x, block(head.convs[1], block(head.convs[0], x))], 1))
    expected = F.conv2d(hidden, head.classifier.weight, head.classifier.bias)
    assert torch.allclose(heads.eval()(maps)[:, 0].transpose(0, 1), expected, atol=1e-5)


def test_dropout_is_by_image_and_over_the_joined_channels() -> None:
    maps = [torch.ones_like(x) for x in levels(batch=300)]
    seeds = torch.arange(300)
    kept = keep_channels(maps, seeds, 0.25)
    drawn = torch.cat([x.mean((2, 3)) for x in kept], 1)
    assert sorted({round(value, 5) for value in drawn.flatten().tolist()}) == [0, 1.33333]
    assert abs(float((drawn == 0).float().mean()) - 0.25) < 0.03
    assert abs(float(drawn.mean()) - 1) < 0.05
    part = keep_channels([x[17:19] for x in maps], seeds[17:19], 0.25)
    assert all(torch.equal(a, b[17:19]) for a, b in zip(part, kept))
    heads = LinearHeads(1, CHANNELS, 2, False, 0.5)
    randomise(heads)
    plain = [x[:3] for x in maps]
    assert not torch.equal(heads(plain, seeds[:3]), heads(plain))
    heads.eval()
    assert torch.equal(heads(plain, seeds[:3]), heads(plain))


@pytest.mark.parametrize("limit", [10**9, 1, 3000])
def test_the_loss_is_cross_entropy_over_all_pixels_however_it_is_cut(limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(5, 3, 2, 4, 4, generator=generator).requires_grad_()
    masks = torch.randint(0, 5, (2, 16, 20), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.3] = VOID
    got = crop_loss(cells, masks.to(torch.uint8), masks.numel(), limit)
    (gradient,) = torch.autograd.grad(got, cells)
    expected = torch.zeros(())
    for head in range(3):
        logits = F.interpolate(cells[:, head].transpose(0, 1), size=(16, 20), mode="bilinear")
        losses = F.cross_entropy(logits, masks, ignore_index=VOID, reduction="none")
        expected = expected + losses.mean()  # void pixels are in the mean, as zeros
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(gradient, torch.autograd.grad(expected, cells)[0], atol=1e-6)


def test_a_frozen_backbone_stays_as_it_is_and_a_fine_tuned_one_does_not() -> None:
    images = torch.randn(4, 3, 32, 32)
    for frozen in (True, False):
        backbone = create_backbone("tiny_resnet")
        before = copy.deepcopy(backbone.state_dict())
        segmenter = Segmenter(backbone, LinearHeads(1, (128,), 3, True, 0.0), False, frozen, torch.float32).train()
        randomise(segmenter.heads)
        segmenter(images).square().mean().backward()
        with torch.no_grad():
            for parameter in segmenter.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
        changed = {k for k, v in segmenter.backbone.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == (set() if frozen else set(before))
        assert (segmenter.trained is segmenter.heads) is frozen
        segmenter.eval()
        assert not any(m.training for m in segmenter.modules())


def test_stages_go_in_where_asked() -> None:
    backbone = create_backbone("vicregl_convnext_mini")
    heads = LinearHeads(1, backbone.stage_channels, 3, False, 0.0)
    logits = Segmenter(backbone, heads, True, True, torch.float32)(torch.randn(1, 3, 64, 64))
    assert logits.shape == (3, 1, 1, 32, 32)


def test_dilation_keeps_the_weights_and_makes_more_cells() -> None:
    backbone = create_backbone("resnet18").eval()
    image = torch.randn(1, 3, 128, 128)
    for stride, cells in ((32, 4), (16, 8), (8, 16), (None, 4)):
        own = own_backbone(backbone, stride).eval()
        assert own is not backbone
        assert own(image).maps.shape == (1, 512, cells, cells)
        assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), backbone.state_dict().values()))
        if stride in (32, None):
            assert torch.allclose(own(image).maps, backbone(image).maps)
    paper = own_backbone(create_backbone("resnet50"), 16).eval()
    with torch.no_grad():
        assert paper(torch.zeros(1, 3, 512, 512)).maps.shape == (1, 2048, 32, 32)  # the paper's map


@pytest.mark.parametrize("options", [{"name": "tiny_resnet"}, {"name": "resnet18", "stem": "small"}])
def test_what_cannot_be_dilated_says_so(options: dict[str, str]) -> None:
    backbone = create_backbone(options)
    with pytest.raises(UserError, match=f"output_stride=16 is for timm ResNets .* not {options['name']}"):
        own_backbone(backbone, 16)


def test_the_norm_of_all_processes_is_batchnorm_in_one() -> None:
    theirs, x = nn.BatchNorm2d(5), levels()[2]
    randomise(theirs)
    module = nn.Sequential(theirs)
    expected = copy.deepcopy(theirs)(x)
    use_global_norms(module)
    assert type(module[0]) is GlobalBatchNorm2d
    assert torch.equal(module(x), expected)


def case() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, affine=False)
    )
    use_global_norms(net)
    return net, torch.cat(levels(seed=3)[2:])


def part_loss(net: nn.Module, x: Tensor) -> Tensor:
    y = net(x)
    return (y.square() * torch.linspace(0.5, 2, 4)[:, None, None]).pow(1.5).sum() + y[:, 0].exp().sum()


def norm_worker(rank_: int, world: int, port: int, folder: str) -> None:
    start(rank_, world, port)
    net, x = case()
    mine = torch.tensor_split(x, [3])[rank()] if world_size() == 2 else x  # 3 images and 1
    loss = part_loss(net, mine)
    loss.backward()
    sum_gradients(net)
    total = sum_over_ranks(loss.detach().clone())
    state = {"loss": total, "grads": [p.grad for p in net.parameters()], "buffers": list(net.buffers())}
    torch.save(state, Path(folder) / f"{rank_}.pt")
    dist.destroy_process_group()


def test_the_norm_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    spawn(norm_worker, 2, str(tmp_path))
    net, x = case()
    loss = part_loss(net, x)
    loss.backward()
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-5, atol=0)
        for got, parameter in zip(found["grads"], net.parameters()):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-3, atol=1e-4)
        for got, buffer in zip(found["buffers"], net.buffers()):
            torch.testing.assert_close(got, buffer, rtol=1e-5, atol=1e-6)


PAPER = {
    ("resnet18", "frozen"): ("sgd", 5e-4, 0, False, 16, "whole", 0.1, (0.1, 0.05, 0.03, 0.02, 0.01)),
    ("vicregl_convnext_mini", "frozen"): (
        "adamw", 0.05, 1500, True, None, "slide", 0.0, (1e-3, 8e-4, 3e-4, 1e-4, 8e-5),
    ),
    ("vit_tiny_patch16_224", "finetune"): (
        "adamw", 0.05, 1500, True, None, "slide", 0.0, (1e-4, 8e-5, 3e-5, 1e-5, 8e-6, 3e-6, 1e-6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_what_is_left_open_is_the_papers(name: tuple[str, str]) -> None:
    backbone, data = create_backbone({"name": name[0]}), colour_blocks(2)
    settings = decided(SegmentationAugmentedConfig(backbone=name[1]), backbone, data)
    optimizer, decay, warmup, stages, stride, test, dropout, lrs = PAPER[name]
    found = (settings.optimizer, settings.weight_decay, settings.warmup, settings.stages, settings.output_stride)
    assert found == (optimizer, decay, warmup, stages, stride)
    assert (settings.test, settings.dropout, settings.lrs) == (test, dropout, lrs)
    assert (settings.iterations, settings.resize, settings.crop) == (40_000, (2048, 512), (512, 512))
    written = settings.written()
    assert None not in vars(written).values() or (stride is None and written.output_stride is None)
    assert decided(written, backbone, data) == dataclasses.replace(settings, options=written)


def test_iterations_and_sizes_follow_the_data() -> None:
    backbone, data = create_backbone("tiny_resnet"), colour_blocks(2)
    for name, iterations, resize in (("ade20k", 160_000, (2048, 512)), ("cityscapes", 40_000, (2048, 1024))):
        data.name = name
        settings = decided(SegmentationAugmentedConfig(), backbone, data)
        assert (settings.iterations, settings.resize, settings.output_stride) == (iterations, resize, None)
    given = SegmentationAugmentedConfig(
        lrs=[0.5], optimizer="adamw", weight_decay=0.0, warmup=0, iterations=7, dropout=0.0, resize=[9, 8], test="slide"
    )
    assert decided(given, backbone, data).written() == SegmentationAugmentedConfig(
        **{**vars(given), "features": "last"}
    )


def test_the_schedule_is_mmcvs() -> None:
    options = SegmentationAugmentedConfig(iterations=100, warmup=10)
    for name, power in (("tiny_resnet", 0.9), ("vicregl_convnext_mini", 1.0)):
        settings = decided(options, create_backbone(name), colour_blocks(2))
        for step in range(100):
            regular = (1 - step / 100) ** power
            expected = regular if step >= 10 else (1 - (1 - step / 10) * (1 - 1e-6)) * regular
            assert settings.factor(step) == pytest.approx(expected)
    with pytest.raises(ValueError, match="warmup=1500 leaves nothing of iterations=100"):
        decided(SegmentationAugmentedConfig(iterations=100), create_backbone("vicregl_convnext_mini"), colour_blocks(2))
