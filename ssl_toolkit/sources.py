"""Which backbone a command is about, and on which data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ssl_toolkit import evaluation, training
from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.config import compose_config, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import sha256
from ssl_toolkit.processes.world import from_first
from ssl_toolkit.registry import typed
from ssl_toolkit.zoo import load_published, published, zoo_file

Compose = Callable[[Sequence[str]], DictConfig]


def source_config(overrides: Sequence[str], compose: Compose) -> tuple[DictConfig, DictConfig]:
    """A command's config, and its data: the group ``data=``, else the run's own with the overrides of it.

    Args:
        compose: overrides to the config; it is asked with ``data=`` among them where the run says which.

    Raises:
        UserError: neither is given.
    """
    parsed = [parse(override) for override in overrides]
    given = {o.key_or_group for o in parsed}
    if "data" in given:
        config = compose(overrides)
        return config, config.data
    plain = [o.input_line for o in parsed if not o.key_or_group.startswith("data.") and o.input_line]
    run = compose_config("eval", [o for o in plain if o.startswith("run=")]).run
    if run is None:
        raise UserError("say on what: data=digit_scenes, or data=folder data.root=PATH")
    saved = training.read_run_config(Path(run)).data
    size = [] if "data.eval_size" in given else [f"data.eval_size={saved.eval_size}"]
    config = compose([f"data={saved.name}", *size, *overrides])
    data = saved.copy()
    for key in given:
        if key.startswith("data."):
            OmegaConf.update(data, key.removeprefix("data."), OmegaConf.select(config, key))
    return config, data


def source_of(config: DictConfig, data: DictConfig) -> tuple[evaluation.Source, Path]:
    """The backbone that ``run``, ``checkpoint``, ``zoo`` or ``backbone`` of a config names, and the folder for what is
    found out about it.

    Raises:
        UserError: none of them, several, or one that cannot be read.
    """
    backbone = config.get("backbone")
    expect = None if backbone is None else typed(BackboneConfig, backbone, "backbone")
    given = [key for key in ("run", "checkpoint", "zoo") if config[key] is not None]
    if len(given) > 1:
        raise UserError(f"give {'= or '.join(given)}=, not {'both' if len(given) == 2 else 'all'}")
    if config.run is not None:
        run = Path(config.run)
        source, out = evaluation.run_source(run, expect), run / "results"
        source = dataclasses.replace(source, load_local=cache(partial(_local_vectors, run, source)))
    elif config.checkpoint is not None:
        path = Path(config.checkpoint)
        source, out = evaluation.file_source(path, expect), path.parent / f"{path.stem}-results"
    elif config.zoo is not None:
        source = _zoo_source(str(config.zoo))
        out = Path(f"zoo-{source.name}-results")
    elif expect is not None:
        source = evaluation.untrained_source(expect, data, config.seed)
        out = Path(f"untrained-{expect.name}-results")
    else:
        raise UserError(
            "say what to look at: run=FOLDER, checkpoint=FILE, zoo=NAME, or backbone=NAME for an untrained one"
        )
    return source, out


def _local_vectors(run: Path, source: evaluation.Source) -> Callable[[Tensor], Tensor]:
    """What makes the vectors by which a run matched cells: its local projector, on the device of the maps it is given.

    Raises:
        UserError: no checkpoint, no local projector, or another backbone than that of ``source``.
    """
    method = training.load_method(run)
    head = getattr(method, "local_head", None)
    if head is None:
        raise UserError(f"run={run} trained no local projector")
    if dataclasses.replace(source, backbone=method.backbone).weights_digest() != source.weights_digest():
        raise UserError(f"run={run}: backbone.safetensors is not that of last.ckpt; ssl-toolkit export {run} writes it")

    def vectors(maps: Tensor) -> Tensor:
        head.to(maps.device)
        return method.local_vectors(maps.float())

    return vectors


def _zoo_source(name: str) -> evaluation.Source:
    entry = published(name)
    path = from_first(lambda: zoo_file(entry.name))
    found = load_published(entry, path)
    return evaluation.Source(found.backbone, found.preprocessing, entry.name, str(path), sha256(path))
