"""A backbone in one line, whatever it lies in: a zoo name, a file, a run folder, a folder of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Source
from ssl_toolkit.files import sha256
from ssl_toolkit.sources import source_of
from ssl_toolkit.zoo import IMAGENET_MEAN, IMAGENET_STD, published
from ssl_toolkit.zoo.exporters import is_hub_folder, read_hub_folder

SIZE, RESIZE = 224, 256
"""Of images where nothing is known, and their ratio where the size alone is: the evaluation of ImageNet."""

SOURCES = ("run", "checkpoint", "zoo")


def load_backbone(name: str | Path, *, size: int | None = None, resize: int | None = None) -> Backbone:
    """A trained backbone, in evaluation mode on the CPU.

    ``backbone(images)`` gives `Features`: ``maps`` ``(B, C, H, W)`` and ``pooled`` ``(B, C)``. ``backbone.preprocess``
    makes input of PIL images, arrays ``(H, W, C)`` and tensors ``(C, H, W)`` of uint8, as the evaluation does.

    Args:
        name: of a published checkpoint (``vicregl/resnet50-a0.75``, ``vicregl_resnet50_alpha0p75``; downloaded once), a
            ``.safetensors`` or other checkpoint file, a run folder, or a folder of ``export format=huggingface``.
        size: side in pixels of the square that ``preprocess`` cuts; None is what was stored with the weights.
        resize: the shorter side in pixels before that; None keeps the stored ratio to ``size``.

    Raises:
        UserError: nothing of that name, a file that cannot be read, or sizes that do not fit each other.
    """
    config = OmegaConf.create({**dict.fromkeys(SOURCES), _kind(str(name)): str(name)})
    source, preprocess = open_source(config, size, resize)
    source.backbone.preprocess = preprocess
    return source.backbone.eval()


def _kind(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        return "checkpoint" if is_hub_folder(path) else "run"
    if path.is_file():
        return "checkpoint"
    try:
        published(name)
    except UserError as error:
        raise UserError(f"{name} is no file, no folder and not in the zoo: {error}") from error
    return "zoo"


def open_source(config: DictConfig, size: int | None = None, resize: int | None = None) -> tuple[Source, Preprocess]:
    """The backbone that ``run=``, ``checkpoint=`` or ``zoo=`` names, and what images go through before it.

    Raises:
        UserError: none of them or several, one that cannot be read, or sizes that do not fit each other.
    """
    given = [key for key in SOURCES if config.get(key) is not None]
    if not given:
        raise UserError("say which backbone: run=FOLDER, checkpoint=FILE or zoo=NAME")
    folder = Path(str(config[given[0]])).expanduser()
    if given == ["checkpoint"] and is_hub_folder(folder):
        backbone, stored = read_hub_folder(folder)
        path = folder / "model.safetensors"
        source = Source(backbone, stored, folder.name, str(path), sha256(path))
    else:
        source, _ = source_of(config, OmegaConf.create({}))
    return source, preprocess_of(_stored(source), source.backbone, size, resize)


def run_of(source: Source) -> Path | None:
    """The run folder that the weights lie in, None where they lie in none."""
    if source.checkpoint_path is None:
        return None
    path = Path(source.checkpoint_path)
    folders = (path.parent, path.parent.parent)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _stored(source: Source) -> Mapping[str, Any]:
    """The preprocessing of a source, with the sizes of its run where it says none."""
    run = run_of(source)
    if run is None or "eval_size" in source.preprocessing:
        return source.preprocessing
    config = OmegaConf.load(run / "config.yaml")
    sizes = {key: OmegaConf.select(config, f"data.{key}") for key in ("eval_resize", "eval_size")}
    return {**{key: size for key, size in sizes.items() if size}, **source.preprocessing}


def preprocess_of(
    stored: Mapping[str, Any], backbone: Backbone, size: int | None = None, resize: int | None = None
) -> Preprocess:
    """The preprocessing that was stored with weights, completed where it says nothing.

    Args:
        stored: ``mean``, ``std``, ``eval_resize``, ``eval_size``, or some of them.
        size, resize: win over what is stored; ``size`` alone keeps the ratio.

    Raises:
        UserError: no mean and std for a backbone that takes neither 3 nor 1 channels, or sizes that do not fit.
    """
    channels = backbone.config.in_channels
    statistics = {3: (IMAGENET_MEAN, IMAGENET_STD), 1: ((0.449,), (0.226,))}
    if "mean" not in stored and channels not in statistics:
        raise UserError(
            f"nothing says mean and std for the {channels} channels of {backbone.config.name}: export it again"
        )
    mean, std = (stored["mean"], stored["std"]) if "mean" in stored else statistics[channels]
    known = int(stored.get("eval_size") or backbone.config.image_size or SIZE)
    ratio = int(stored.get("eval_resize") or round(known * RESIZE / SIZE)) / known
    side = size or known
    return Preprocess(tuple(map(float, mean)), tuple(map(float, std)), resize or max(side, round(side * ratio)), side)
