"""A folder as the Hugging Face hub has them: weights, config, preprocessing and a model card.

``ssl_toolkit.load_backbone`` reads it; where timm has the network, so does
``timm.create_model("hf-hub:USER/NAME", pretrained=True)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.backbones.timm_backbone import TimmBackbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, read_json, write_json, write_text
from ssl_toolkit.zoo.exporters.base import Subject, plain_weights
from ssl_toolkit.zoo.exporters.card import model_card
from ssl_toolkit.zoo.exporters.timm_format import TimmModel, in_timm, timm_form, without_unit_layer_scale

WEIGHTS, CONFIG, PREPROCESSOR, CARD = "model.safetensors", "config.json", "preprocessor_config.json", "README.md"
OURS = "ssl_toolkit"
BILINEAR = 2
"""Of Pillow, as the hub's preprocessors name it."""


def write_hub_folder(subject: Subject, out: Path) -> list[str]:
    """Write the folder; what it held under other names stays.

    Raises:
        UserError: it cannot be written.
    """
    backbone = subject.backbone
    model = timm_form(subject, "huggingface") if in_timm(subject) else None
    with atomic_path(out / WEIGHTS) as temporary:
        save_file(model.weights if model else _own_weights(backbone), temporary, {"format": "pt"})
    write_json(out / CONFIG, _config(subject, model))
    write_json(out / PREPROCESSOR, _preprocessor(subject))
    write_text(out / CARD, model_card(subject, model))
    lines = [f'ssl_toolkit.load_backbone("{out}")']
    if model is not None:
        lines.append(f'timm.create_model("local-dir:{out}", pretrained=True)')
    return [*lines, f"hf upload USER/{subject.name} {out}"]


def _own_weights(backbone: Backbone) -> dict[str, Any]:
    network = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    return plain_weights(network.state_dict())


def _config(subject: Subject, model: TimmModel | None) -> dict[str, Any]:
    prepared, config = subject.preprocess, subject.backbone.config
    ours = {OURS: {"config": config.as_dict(), "preprocessing": prepared.stored()}}
    if model is None:
        return {"architecture": config.name, "num_features": subject.backbone.num_features, **ours}
    network: Any = subject.backbone.model
    known = network.pretrained_cfg
    given = {
        "input_size": [config.in_channels, prepared.size, prepared.size],
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "interpolation": "bilinear",
        "crop_pct": prepared.size / prepared.resize,
        "crop_mode": "center",
        "num_classes": 0,
        "pool_size": None,
        "fixed_input_size": bool(known.get("fixed_input_size", False)),
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
    }
    return {
        "architecture": model.name,
        "num_classes": 0,
        "num_features": subject.backbone.num_features,
        "model_args": {key: value for key, value in model.arguments.items() if key not in ("num_classes", "in_chans")},
        "pretrained_cfg": given,
        **ours,
    }


def _preprocessor(subject: Subject) -> dict[str, Any]:
    prepared = subject.preprocess
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": subject.backbone.config.in_channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": prepared.resize},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": prepared.size, "width": prepared.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepared.mean),
        "image_std": list(prepared.std),
    }


def is_hub_folder(folder: Path) -> bool:
    """Whether ``folder`` is one that `write_hub_folder` may have written."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read_hub_folder(folder: Path) -> tuple[Backbone, dict[str, Any]]:
    """The backbone of a folder that `write_hub_folder` wrote, in evaluation mode, and its preprocessing.

    Raises:
        UserError: a file is missing, damaged, or not of this toolkit, or weights do not fit.
    """
    about = read_json(folder / CONFIG)
    ours = about.get(OURS) if isinstance(about, dict) else None
    if not isinstance(ours, dict) or not {"config", "preprocessing"} <= ours.keys():
        raise UserError(f"{folder / CONFIG} has no section {OURS!r}: only folders of ssl-toolkit export are read")
    backbone = create_backbone(ours["config"])
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS} ({str(error).splitlines()[0]}): export it again") from error
    network = backbone.model if isinstance(backbone, TimmBackbone) else backbone
    try:
        network.load_state_dict(without_unit_layer_scale(backbone.config, tensors))
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} is no {backbone.config.name}: {' '.join(str(error).split())}") from error
    return backbone.eval(), dict(ours["preprocessing"])
