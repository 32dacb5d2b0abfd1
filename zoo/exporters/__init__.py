"""A backbone in the formats of other libraries; each says which architectures it has a place for."""

from __future__ import annotations

from pathlib import Path

from ssl_toolkit.backbones import save_backbone
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.zoo.exporters.base import Facts, Format, Subject
from ssl_toolkit.zoo.exporters.graphs import write_onnx, write_torch_export
from ssl_toolkit.zoo.exporters.hub_folder import is_hub_folder, read_hub_folder, write_hub_folder
from ssl_toolkit.zoo.exporters.libraries import write_detectron2, write_mmdetection, write_torchvision
from ssl_toolkit.zoo.exporters.timm_format import write_timm

__all__ = [
    "FORMATS",
    "Facts",
    "Format",
    "Subject",
    "export_backbone",
    "format_of",
    "is_hub_folder",
    "read_hub_folder",
]


def _write_safetensors(subject: Subject, out: Path) -> list[str]:
    save_backbone(out, subject.backbone, subject.preprocess.stored(), subject.extra)
    return [f'ssl_toolkit.load_backbone("{out}")']


FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_safetensors, (".safetensors",), "this toolkit's own, with its metadata"),
    "timm": Format(write_timm, (".safetensors", ".pth"), "a state dict for timm.create_model"),
    "torchvision": Format(write_torchvision, (".pth", ".safetensors"), "a state dict for torchvision.models"),
    "detectron2": Format(write_detectron2, (".pth",), "weights of detectron2's ResNet"),
    "mmdetection": Format(write_mmdetection, (".pth",), "weights of mmdetection's ResNet, mmpretrain's ConvNeXt"),
    "huggingface": Format(write_hub_folder, (), "a folder for the Hugging Face hub, with a model card"),
    "onnx": Format(write_onnx, (".onnx",), "a graph, checked with onnxruntime", sized=True),
    "torch_export": Format(write_torch_export, (".pt2",), "a graph of torch.export, checked", sized=True),
}


def format_of(name: str) -> Format:
    """The format of that name; an unknown one is a `UserError` with the nearest."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]


def export_backbone(subject: Subject, name: str, out: Path) -> list[str]:
    """Write a backbone in the format ``name``; nothing half written is left where that fails.

    Returns:
        How it is loaded, line by line.

    Raises:
        UserError: an unknown format, a file with another suffix, an architecture that the format has no place for, or
            a file that cannot be written.
    """
    chosen = format_of(name)
    if chosen.suffixes and out.suffix not in chosen.suffixes:
        raise UserError(f"out={out}: name a {' or '.join(chosen.suffixes)} file for format={name}")
    if not chosen.suffixes and out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file: format={name} writes a folder; name one")
    if chosen.suffixes and out.is_dir():
        raise UserError(f"out={out} is a folder: name a {chosen.suffixes[0]} file")
    return chosen.write(subject, out)
