"""Every kind of backbone keeps the contract of `Features` and of the pyramid."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

from ssl_toolkit.backbones import (
    Backbone,
    BackboneConfig,
    backbone_names,
    create_backbone,
    map_size,
)
from ssl_toolkit.errors import UserError


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known of an architecture: sides of the input and of the maps, channels, its head."""

    name: str
    size: int
    cells: int
    features: int
    stages: tuple[int, ...]
    norm: str = "batch"
    plain_mean: bool = True
    last_is_maps: bool = True
    timm_pools_alike: bool = True
    options: tuple[tuple[str, object], ...] = ()

    def build(self) -> Backbone:
        torch.manual_seed(0)
        return create_backbone({"name": self.name, **dict(self.options)})


CASES = [
    Case("tiny_resnet", 48, 6, 128, (32, 64, 128, 128), timm_pools_alike=False),
    Case("vicregl_convnext_small", 64, 2, 768, (96, 192, 384, 768), "layer"),
    Case("vicregl_convnext_mini", 48, 3, 192, (24, 48, 96, 192), "layer"),
    Case("resnet18", 64, 2, 512, (64, 128, 256, 512)),
    Case("resnet18", 32, 4, 512, (64, 128, 256, 512), options=(("stem", "small"),)),
    Case("resnet50", 64, 2, 2048, (256, 512, 1024, 2048)),
    Case("regnety_002", 64, 2, 368, (24, 56, 152, 368)),
    Case("convnext_atto", 64, 2, 320, (40, 80, 160, 320), "layer", plain_mean=False),
    Case("efficientnet_b0", 64, 2, 1280, (24, 40, 112, 320), last_is_maps=False),
    # timm applies a further convolution after pooling, which is no feature of the maps.
    Case("mobilenetv3_small_050", 64, 2, 288, (8, 16, 24, 288), timm_pools_alike=False),
    Case("densenet121", 64, 2, 1024, (256, 512, 1024, 1024)),
    Case("vgg11_bn", 64, 2, 512, (256, 512, 512, 512)),
    # timm pools by the class token.
    Case("vit_tiny_patch16_224", 64, 4, 192, (192,) * 4, "layer", timm_pools_alike=False),
    Case(
        "vit_tiny_patch16_224",
        32,
        2,
        192,
        (192,) * 4,
        "layer",
        timm_pools_alike=False,
        options=(("image_size", 32),),
    ),
    Case("swin_tiny_patch4_window7_224", 64, 2, 768, (96, 192, 384, 768), "layer"),
]
IDS = [case.name + "".join(f"-{value}" for _, value in case.options) for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_contract(case: Case) -> None:
    """One build per family, all of the contract: building a network is the slow part."""
    backbone = case.build()
    assert backbone.training
    assert_fresh_statistics(backbone)
    assert backbone.norm == case.norm
    assert backbone.num_features == case.features
    assert backbone.stage_channels == case.stages
    assert map_size(backbone, case.size) == (case.cells, case.cells)
    assert_fresh_statistics(backbone)
    assert backbone.training

    images = torch.randn(2, 3, case.size, case.size)
    trained = backbone(images)
    (trained.maps.square().mean() + trained.pooled.square().mean()).backward()
    assert_gradients(backbone)

    backbone.eval()
    with torch.no_grad():
        features, pyramid = backbone(images), backbone.stages(images)
        again = backbone(images)
        both, levels = backbone.forward_stages(images)
    torch.testing.assert_close(both, features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(levels, pyramid, rtol=0, atol=0)
    assert features.maps.shape == (2, case.features, case.cells, case.cells)
    assert features.pooled.shape == (2, case.features)
    assert torch.equal(features.maps, again.maps)
    assert torch.equal(features.pooled, again.pooled)
    mean = features.maps.mean((2, 3))
    assert torch.allclose(features.pooled, mean, atol=1e-6) == case.plain_mean
    assert tuple(level.shape[1] for level in pyramid) == case.stages
    sides = [level.shape[2] for level in pyramid]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == case.cells
    same = pyramid[-1].shape == features.maps.shape and torch.allclose(pyramid[-1], features.maps, atol=1e-5)
    assert same == case.last_is_maps
    if case.timm_pools_alike:  # timm's own classifier-free forward is the oracle
        with torch.no_grad():
            torch.testing.assert_close(features.pooled, backbone.model(images), rtol=1e-4, atol=1e-5)


def assert_fresh_statistics(backbone: Backbone) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.num_batches_tracked == 0
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
            assert torch.equal(module.running_var, torch.ones_like(module.running_var))


def assert_gradients(backbone: Backbone) -> None:
    """Every trainable weight gets a gradient (DistributedDataParallel waits for it), the first included."""
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_tiny_resnet_is_the_measured_one() -> None:
    backbone = create_backbone("tiny_resnet")
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert [m.stride[0] for m in convolutions if m.kernel_size == (3, 3)] == [2, 1, 1, 2, 1, 2, 1, 1, 1]
    assert not any(isinstance(m, nn.MaxPool2d) for m in backbone.modules())
    blocks = [(32, 32), (32, 64), (64, 128), (128, 128)]
    expected = 3 * 32 * 9 + sum(9 * (i * o + o * o) for i, o in blocks) + 32 * 64 + 64 * 128
    assert sum(m.weight.numel() for m in convolutions) == expected
    assert map_size(backbone, 48, 64) == (6, 8)


@pytest.mark.parametrize(
    ("name", "widths", "depths"),
    [
        ("vicregl_convnext_mini", (24, 48, 96, 192), (1, 1, 2, 1)),
        ("vicregl_convnext_small", (96, 192, 384, 768), (3, 3, 27, 3)),
        ("vicregl_convnext_base", (128, 256, 512, 1024), (3, 3, 27, 3)),
        ("vicregl_convnext_xlarge", (256, 512, 1024, 2048), (3, 3, 27, 3)),
    ],
)
def test_vicregl_convnexts_have_no_layer_scale(name: str, widths: tuple, depths: tuple) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert backbone.stage_channels == widths
    assert tuple(len(stage.blocks) for stage in backbone.model.stages) == depths
    names = backbone.state_dict().keys()
    assert not any("gamma" in n for n in names)
    assert "model.norm_pre.weight" in names


def test_layer_scale_is_what_the_plain_convnext_has() -> None:
    with torch.device("meta"):
        assert any("gamma" in n for n in create_backbone("convnext_small").state_dict())


def test_swin_maps_are_timms_in_channels_first_order() -> None:
    backbone = create_backbone("swin_tiny_patch4_window7_224").eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone.model.forward_features(images)  # (B, H, W, C)
        maps = backbone(images).maps
    assert maps.shape == (1, 768, 2, 3)
    for row in range(2):
        for column in range(3):
            assert torch.equal(maps[:, :, row, column], expected[:, row, column])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_vit_maps_are_the_patch_tokens_in_row_major_order(name: str) -> None:
    backbone = create_backbone(name).eval()
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        tokens = backbone.model.forward_features(images)[:, backbone.model.num_prefix_tokens :]
        maps = backbone(images).maps
    assert maps.shape == (1, 192, 2, 3)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), tokens)


def test_small_stem_keeps_the_resolution() -> None:
    backbone = create_backbone({"name": "resnet18", "stem": "small", "in_channels": 1})
    assert backbone.model.conv1.weight.shape == (64, 1, 3, 3)
    assert map_size(backbone, 32) == (4, 4)
    assert map_size(create_backbone("resnet18"), 32) == (1, 1)


def test_drop_path_drops_in_training_only() -> None:
    for name in ("tiny_resnet", "resnet18", "convnext_atto"):
        torch.manual_seed(0)
        backbone = create_backbone({"name": name, "drop_path": 0.5})
        images = torch.randn(4, 3, 32, 32)
        for module in backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
                nn.init.ones_(module.weight)  # timm starts a residual branch's last one at zero
        for parameter_name, parameter in backbone.named_parameters():
            if parameter_name.endswith("gamma"):
                nn.init.ones_(parameter)
        with torch.no_grad():
            assert not torch.equal(backbone(images).pooled, backbone(images).pooled)
            backbone.eval()
            assert torch.equal(backbone(images).pooled, backbone(images).pooled)


@pytest.mark.parametrize(
    "config",
    [
        BackboneConfig("tiny_resnet", in_channels=1),
        {"name": "tiny_resnet", "in_channels": 1},
        OmegaConf.create({"name": "tiny_resnet", "in_channels": 1}),
    ],
)
def test_config_in_any_form(config: object) -> None:
    backbone = create_backbone(config)  # type: ignore[arg-type]
    assert backbone.config == BackboneConfig("tiny_resnet", in_channels=1)
    assert backbone(torch.randn(2, 1, 16, 16)).maps.shape == (2, 128, 2, 2)


def test_names() -> None:
    names = backbone_names()
    assert {"tiny_resnet", "vicregl_convnext_small", "resnet50"} <= set(names)
    assert set(timm.list_models()) < set(names)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("resnet8", ["'resnet8'", "did you mean", "'resnet18'"]),
        ("tiny_resnt", ["'tiny_resnet'"]),
        ("hf-hub:someone/model", ["unknown backbone"]),
        ("resnet50.no_such_tag", ["resnet50.no_such_tag"]),
        ({"name": None}, ["backbone.name", "not set"]),
        ({"in_channels": 3}, ["backbone.name", "not set"]),
        ({"name": "resnet18", "in_channel": 1}, ["backbone.in_channel", "in_channels"]),
        ({"name": "resnet18", "in_channels": 0}, ["in_channels", "not 0"]),
        ({"name": "resnet18", "in_channels": "three"}, ["in_channels", "three"]),
        ({"name": "resnet18", "stem": "smal"}, ["'smal'", "'small'"]),
        ({"name": "resnet18", "drop_path": 1.0}, ["drop_path", "not 1.0"]),
        ({"name": "resnet18", "image_size": -1}, ["image_size", "not -1"]),
        ({"name": "vgg11", "drop_path": 0.1}, ["vgg11", "stochastic depth"]),
        ({"name": "densenet121", "drop_path": 0.1}, ["densenet121", "stochastic depth"]),
        ({"name": "convnext_atto", "stem": "small"}, ["stem=small", "convnext_atto"]),
        ({"name": "resnet18d", "stem": "small"}, ["stem=small", "resnet18d"]),
        ({"name": "tiny_resnet", "stem": "small"}, ["stem=small", "tiny_resnet"]),
        ("crossvit_9_240", ["crossvit_9_240", "no usable feature maps", "list"]),
    ],
)
def test_bad_options_are_one_clear_line(config: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        create_backbone(config)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 50), ("inception_v3", 32)])
def test_map_size_refuses_what_the_network_refuses(name: str, size: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    with pytest.raises(UserError, match=f"{name} does not take images of {size}x{size} pixels"):
        map_size(backbone, size)


def test_map_size_leaves_the_backbone_as_it_was() -> None:
    backbone = create_backbone("tiny_resnet")
    backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    map_size(backbone, 40)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_weights_without_use_are_frozen() -> None:
    backbone = create_backbone("mobilenetv3_small_050")
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"model.conv_head.weight", "model.conv_head.bias"}
    with torch.device("meta"):
        assert sum(p.numel() for p in create_backbone("vgg11").parameters()) < 10_000_000


@pytest.mark.parametrize("name", ["tiny_resnet", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_maps_and_pyramid_come_from_one_pass(name: str) -> None:
    backbone = create_backbone(name).eval()
    calls = []
    for module in backbone.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        backbone(images)
        alone = len(calls)
        backbone.forward_stages(images)
    assert alone <= len(calls) - alone <= alone + 8  # a norm of each level
