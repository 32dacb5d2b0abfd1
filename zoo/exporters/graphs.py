"""The network as a graph: ONNX, and ``torch.export``; what is written is run and compared before it takes its place."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.probe import reason
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path
from ssl_toolkit.zoo.exporters.base import Subject, features_of, require_equal

INPUT, OUTPUTS = "images", ("maps", "pooled")
CHECKED = (1, 3)
"""Batch sizes at which a graph is compared with its backbone; it is traced at another one."""
METADATA = "ssl_toolkit.json"


class _Plain(nn.Module):
    """The backbone with a plain tuple as its output."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features.maps.contiguous(), features.pooled


def _metadata(subject: Subject) -> str:
    about = {"config": subject.backbone.config.as_dict(), "preprocessing": subject.preprocess.stored()}
    return json.dumps({"name": subject.name, **about})


def _check(subject: Subject, run: Callable[[Tensor], tuple[Tensor, Tensor]], what: str) -> None:
    """Compare ``run`` with the backbone on random batches.

    Raises:
        UserError: they differ.
    """
    for count in CHECKED:
        images = subject.random_images(count)
        wanted = features_of(subject, images)
        maps, pooled = run(images)
        require_equal(maps, wanted.maps, f"{what} at batch size {count}: maps")
        require_equal(pooled, wanted.pooled, f"{what} at batch size {count}: pooled")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refused(subject: Subject, format_: str, error: Exception) -> UserError:
    return UserError(f"format={format_} cannot trace {subject.backbone.config.name} ({reason(error)}): use safetensors")


def write_torch_export(subject: Subject, out: Path) -> list[str]:
    """A ``.pt2`` of `torch.export` with any batch size, input ``(B, C, S, S)`` normalised, output (maps, pooled).

    Raises:
        UserError: torch cannot trace the network, or the graph gives other features.
    """
    dynamic = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                _Plain(subject.backbone).eval(), (subject.random_images(2),), dynamic_shapes=dynamic
            )
    except Exception as error:  # tracers fail in as many ways as there are networks
        raise _refused(subject, "torch_export", error) from error
    with atomic_path(out) as temporary:
        with _quiet():
            torch.export.save(program, temporary, extra_files={METADATA: _metadata(subject)})
            read: Any = torch.export.load(temporary).module()
        _check(subject, read, "the torch.export graph")
    return [f'maps, pooled = torch.export.load("{out}").module()(images)  # {_input(subject)}']


def write_onnx(subject: Subject, out: Path) -> list[str]:
    """An ONNX graph with any batch size, input ``images`` ``(B, C, S, S)`` normalised, outputs ``maps``, ``pooled``.

    Raises:
        UserError: the packages are missing, torch cannot trace the network, or onnxruntime gives other features.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"format=onnx needs {package}: pip install 'ssl-toolkit[onnx]'")
    import onnxruntime

    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                _Plain(subject.backbone).eval(),
                (subject.random_images(2),),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except Exception as error:
        raise _refused(subject, "onnx", error) from error
    program.model.metadata_props[METADATA.removesuffix(".json")] = _metadata(subject)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        maps, pooled = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return torch.from_numpy(maps), torch.from_numpy(pooled)

    with atomic_path(out) as temporary:
        with _quiet():
            program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        _check(subject, run, "the ONNX graph")
    return [
        f'session = onnxruntime.InferenceSession("{out}"); maps, pooled = session.run(None, {{"{INPUT}": images}})'
        f"  # {_input(subject)}"
    ]


def _input(subject: Subject) -> str:
    side = subject.preprocess.size
    return f"images (B, {subject.backbone.config.in_channels}, {side}, {side}), normalised"
