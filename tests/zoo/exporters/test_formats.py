"""Every backbone of the registry in every format: it loads where it is meant to and gives the same, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

import ssl_toolkit
from ssl_toolkit.backbones import BackboneConfig, Features
from ssl_toolkit.backbones import read_backbone as load_own
from ssl_toolkit.config import choices, compose_config
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed
from ssl_toolkit.zoo.exporters import FORMATS, Facts, Subject, export_backbone, read_hub_folder
from ssl_toolkit.zoo.exporters.libraries import detectron2_name
from tests.zoo.exporters.helpers import assert_close, detectron2_resnet, mmpretrain_convnext, subject

BIG = {
    "resnet50x2", "resnet200x2", "vicregl_convnext_small", "vicregl_convnext_base", "vicregl_convnext_xlarge",
    "convnext_tiny",
}  # fmt: skip
"""Tested in full behind the slow marker; their kinds are tested by smaller ones."""

SUPPORT = {
    "tiny_resnet": "safetensors huggingface onnx torch_export",
    "resnet18_small": "safetensors huggingface onnx torch_export",
    "resnet18": "safetensors timm torchvision detectron2 mmdetection huggingface onnx torch_export",
    "resnet50": "safetensors timm torchvision detectron2 mmdetection huggingface onnx torch_export",
    "timm": "safetensors timm huggingface onnx torch_export",
    "vit_small": "safetensors timm huggingface onnx torch_export",
    "moco_v3_vit_small": "safetensors timm huggingface onnx torch_export",
    "resnet50x2": "safetensors huggingface onnx torch_export",
    "resnet200x2": "safetensors huggingface onnx torch_export",
    "convnext_tiny": "safetensors timm torchvision mmdetection huggingface onnx torch_export",
    "vicregl_convnext_mini": "safetensors mmdetection huggingface onnx torch_export",
    "vicregl_convnext_small": "safetensors timm mmdetection huggingface onnx torch_export",
    "vicregl_convnext_base": "safetensors timm mmdetection huggingface onnx torch_export",
    "vicregl_convnext_xlarge": "safetensors timm mmdetection huggingface onnx torch_export",
}
QUICK_GRAPHS = ("tiny_resnet", "resnet18", "vit_small", "vicregl_convnext_mini")
GRAPHED = [pytest.param(name, marks=() if name in QUICK_GRAPHS else pytest.mark.slow) for name in SUPPORT]
FAMILIES = [pytest.param(name, marks=pytest.mark.slow if name in BIG else ()) for name in SUPPORT]


def config_of(name: str) -> BackboneConfig:
    """The backbone of ``configs/backbone/NAME.yaml``; of ``timm`` a small network, ViTs at a smaller size."""
    overrides = [f"backbone={name}", *(["backbone.name=regnety_002"] if name == "timm" else [])]
    config = typed(BackboneConfig, compose_config("export", overrides).backbone, "backbone")
    config.image_size = 64 if config.image_size else None
    return config


def written(given: Subject, format_: str, folder: Path) -> Path:
    """The file, or the folder, that an export wrote."""
    suffixes = FORMATS[format_].suffixes
    out = folder / f"out{suffixes[0] if suffixes else ''}"
    export_backbone(given, format_, out)
    return out


def test_every_backbone_config_is_decided_on() -> None:
    assert sorted(SUPPORT) == choices("backbone")


def round_trips(name: str, formats: list[str], folder: Path) -> None:
    """Write each of ``formats``, load it and compare, or see it refused."""
    given = subject(config_of(name))
    images = given.random_images(2)
    with torch.no_grad():
        wanted = given.backbone(images)
    supported = SUPPORT[name].split()
    for format_ in formats:
        if format_ in supported:
            loads(given, format_, written(given, format_, folder / format_), images, wanted, "timm" in supported)
            continue
        with pytest.raises(UserError, match=f"format={format_} has no place for {given.backbone.config.name}"):
            written(given, format_, folder / format_)
        assert not (folder / format_).exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_load_there_or_are_refused(name: str, tmp_path: Path) -> None:
    round_trips(name, [format_ for format_ in FORMATS if not FORMATS[format_].sized], tmp_path)


@pytest.mark.parametrize("name", GRAPHED)
def test_graphs_compute_the_same_at_other_batch_sizes(name: str, tmp_path: Path) -> None:
    round_trips(name, ["onnx", "torch_export"], tmp_path)


@torch.no_grad()
def loads(given: Subject, format_: str, out: Path, images: torch.Tensor, wanted: Features, in_timm: bool) -> None:
    """Load ``out`` by what it is meant for, and compare its features."""
    maps, pooled = wanted
    config = given.backbone.config
    if format_ in ("safetensors", "huggingface"):
        backbone, stored = load_own(out) if format_ == "safetensors" else read_hub_folder(out)
        features = backbone(images)
        assert torch.equal(features.maps, maps)
        assert torch.equal(features.pooled, pooled)
        assert Preprocess.of(stored) == given.preprocess
        assert backbone.config == config
    if format_ == "timm":
        about = load_metadata(out)
        network = timm.create_model(about["name"], checkpoint_path=out, **about["arguments"]).eval()
        timm_gives(network, images, maps, pooled)
    if format_ == "huggingface" and in_timm:
        timm_gives(timm.create_model(f"local-dir:{out}", pretrained=True).eval(), images, maps, pooled)
    if format_ == "torchvision":
        network = torchvision.models.get_model(config.name)
        holder, key = (network, "fc") if config.name.startswith("resnet") else (network.classifier, "2")
        setattr(holder, key, torch.nn.Identity())
        network.load_state_dict(torch.load(out, weights_only=True))
        assert_close(network.eval()(images), pooled)
    if format_ == "detectron2":
        stored = torch.load(out, weights_only=True)
        assert stored["matching_heuristics"] is True
        assert_close(detectron2_resnet(stored["model"], images), maps)
    if format_ == "mmdetection":
        weights = torch.load(out, weights_only=True)["state_dict"]
        if config.name.startswith("resnet"):  # its names are torchvision's
            reference = torchvision.models.get_model(config.name)
            reference.fc = torch.nn.Identity()
            reference.load_state_dict(weights)
            assert_close(reference.eval()(images), pooled)
        else:
            found = mmpretrain_convnext(weights, images, 2 if "mini" in config.name else 4)
            normed = maps if config.name.startswith("vicregl") else given.backbone.model.head.norm(maps)  # type: ignore[operator]
            assert_close(found, normed)
    if format_ == "torch_export":
        run = torch.export.load(out).module()
        for count in (1, 2, 5):
            assert_close(run(given.random_images(count))[1], given.backbone(given.random_images(count)).pooled)
    if format_ == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        for count in (1, 2, 5):
            found = session.run(["maps", "pooled"], {"images": given.random_images(count).numpy()})
            for array, tensor in zip(found, given.backbone(given.random_images(count))):
                assert_close(torch.from_numpy(array), tensor)


def test_a_vicregl_convnext_in_timm_and_back(tmp_path: Path) -> None:
    """timm's ConvNeXt has layer scale, ours has none: ones are written, and left out again."""
    given = subject("vicregl_convnext_small", size=32)
    export_backbone(given, "huggingface", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert bool((stored["stages.2.blocks.5.gamma"] == 1).all())
    images = given.random_images(2)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        maps, pooled = given.backbone(images)
        timm_gives(network, images, maps, pooled)
        again, _ = read_hub_folder(tmp_path)
        assert torch.equal(again(images).maps, maps)


def timm_gives(network: torch.nn.Module, images: torch.Tensor, maps: torch.Tensor, pooled: torch.Tensor) -> None:
    found = network.forward_features(images)
    if found.ndim == 3:  # a ViT's tokens, the class token first
        assert_close(found[:, 1:].mean(1), pooled)
    else:
        assert_close(found, maps)
        assert_close(network(images), pooled)


def load_metadata(path: Path) -> dict:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["timm"]))


def test_other_channels_go_where_there_is_a_place(tmp_path: Path) -> None:
    given = subject(BackboneConfig("resnet18", in_channels=1))
    path = written(given, "timm", tmp_path)
    assert load_metadata(path)["arguments"] == {"num_classes": 0, "in_chans": 1}
    with pytest.raises(UserError, match="its networks take 3 channels, this one 1"):
        written(given, "torchvision", tmp_path)
    images = given.random_images(2)
    stored = torch.load(written(given, "detectron2", tmp_path), weights_only=True)
    with torch.no_grad():
        assert_close(detectron2_resnet(stored["model"], images), given.backbone(images).maps)
    out = tmp_path / "hub"
    export_backbone(given, "huggingface", out)
    assert timm.create_model(f"local-dir:{out}", pretrained=True).conv1.weight.shape[1] == 1


def test_files_of_either_suffix_hold_the_same(tmp_path: Path) -> None:
    given = subject("resnet18")
    for format_ in ("timm", "torchvision"):
        for suffix in (".pth", ".safetensors"):
            export_backbone(given, format_, tmp_path / f"{format_}{suffix}")
        tensors = load_file(tmp_path / f"{format_}.safetensors")
        plain = torch.load(tmp_path / f"{format_}.pth", weights_only=True)
        assert tensors.keys() == plain.keys()
        assert all(torch.equal(tensors[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer1.0.bn1.weight", "res2.0.conv1.norm.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_var", "res3.0.shortcut.norm.running_var"),
    ],
)
def test_names_of_detectron2_are_those_it_documents(ours: str, theirs: str) -> None:
    assert detectron2_name(ours) == theirs


def test_what_it_says_of_loading_works(tmp_path: Path) -> None:
    given = subject("resnet18")
    for format_ in ("timm", "torchvision"):
        out = tmp_path / f"{format_}.pth"
        (line,) = export_backbone(given, format_, out)
        exec(line, {"timm": timm, "torchvision": torchvision, "torch": torch})
    lines = export_backbone(given, "detectron2", tmp_path / "d2.pth")
    assert 'INPUT.FORMAT RGB MODEL.PIXEL_MEAN "[102.0, 102.0, 102.0]"' in lines[1]
    assert "DEPTH 18" in lines[0]
    assert "RES2_OUT_CHANNELS 64" in lines[0]
    mmdet = export_backbone(subject("vicregl_convnext_mini"), "mmdetection", tmp_path / "mm.pth")
    assert "layer_scale_init_value=0.0, gap_before_final_norm=False" in mmdet[0]
    assert "'channels': [24, 48, 96, 192]}, stem_patch_size=2" in mmdet[0]


def test_a_graph_that_gives_other_features_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_toolkit.zoo.exporters import graphs
    from tests.zoo.exporters.helpers import Halves

    monkeypatch.setattr(graphs, "_Plain", Halves)
    for format_, suffix in (("torch_export", ".pt2"), ("onnx", ".onnx")):
        with pytest.raises(UserError, match="at batch size 1: pooled differs from the backbone's"):
            export_backbone(subject("tiny_resnet"), format_, tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx: pip install 'ssl-toolkit\[onnx\]'"):
        export_backbone(subject("tiny_resnet"), "onnx", tmp_path / "x.onnx")


def test_bad_names_are_refused(tmp_path: Path) -> None:
    given = subject("tiny_resnet")
    with pytest.raises(UserError, match="unknown format 'onxx': did you mean 'onnx'"):
        export_backbone(given, "onxx", tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"name a .onnx file for format=onnx"):
        export_backbone(given, "onnx", tmp_path / "x.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: format=huggingface writes a folder"):
        export_backbone(given, "huggingface", tmp_path / "file")
    (tmp_path / "x.pt2").mkdir()
    with pytest.raises(UserError, match=r"is a folder: name a .pt2 file"):
        export_backbone(given, "torch_export", tmp_path / "x.pt2")


RESULT = {
    "protocol": "linear", "variant": "", "data": "imagenet", "metric": "top1", "metrics": {"top1": 71.23, "top5": 90.0},
    "selected": {"lr": 0.3}, "notes": ["one seed"],
}  # fmt: skip


def test_the_card_says_what_was_done_and_measured(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    config = {
        "method": {"name": "vicregl", "alpha": 0.75}, "data": {"name": "imagenet"},
        "trainer": {"epochs": 300, "batch_size": 2048}, "optimizer": {"name": "lars", "lr": 0.2}, "seed": 1,
    }  # fmt: skip
    given = subject("resnet18", facts=Facts("apache-2.0", config, (RESULT,)))
    export_backbone(given, "huggingface", tmp_path)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    assert card.data.datasets == ["imagenet-1k"]
    (measured,) = card.data.eval_results
    assert (measured.dataset_name, measured.metric_type, measured.metric_value) == ("imagenet", "top1", 71.23)
    for line in ("| epochs | 300 |", "| alpha | 0.75 |", "top1 71.23, top5 90.00", "- linear: one seed", "72 pixels"):
        assert line in card.text
    assert "Published numbers" not in card.text
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"shortest_edge": 72}
    assert preprocessor["crop_size"] == {"height": 64, "width": 64}


def test_a_card_of_nothing_known_says_so(tmp_path: Path) -> None:
    export_backbone(subject("tiny_resnet"), "huggingface", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "license: unknown" in text
    assert "Not stated." in text
    assert "## Results" not in text


def test_broken_hub_folders_are_refused(tmp_path: Path) -> None:
    export_backbone(subject("tiny_resnet"), "huggingface", tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"cannot read .*model.safetensors"):
        ssl_toolkit.load_backbone(tmp_path)
    export_backbone(subject("resnet18"), "huggingface", tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"model.safetensors is no tiny_resnet"):
        ssl_toolkit.load_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(UserError, match="has no section 'ssl_toolkit'"):
        ssl_toolkit.load_backbone(tmp_path)
