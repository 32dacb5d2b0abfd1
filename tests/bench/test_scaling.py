"""Counted bytes against hand calculation, and against what collectives of the criteria really bring in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_toolkit.bench.ranks import RanksConfig, count_rows
from ssl_toolkit.bench.scaling import Shapes, _counted, _images, scaling, shapes_of
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.methods import METHODS
from ssl_toolkit.training.parts import resolved
from tests.helpers import TinyBackbone


def shapes(**other: int) -> Shapes:
    values = {
        "parameters": 1000,
        "saved": 50,
        "copies": 2000,
        "norms": 3,
        "channels": 40,
        "views": 2,
        "dim": 512,
        "slots": 26,
        "local_dim": 16,
        "optimizer_numbers": 2,
    }
    return Shapes(**(values | other))


def test_criteria_receive_what_is_counted_while_they_run() -> None:
    """26 slots divide by 2 and 13; shapes, flags and terms are a few hundred bytes more."""
    worlds = [2, 13]
    options = RanksConfig(batch=130, dim=512, local_dim=16, cells=9, gamma=4, worlds=worlds)
    found = {(row.loss, row.ranks): row.shared.bytes for row in count_rows(options)}
    for row in scaling(shapes(), 130, worlds):
        for loss, formula in (("global", row.gathered), ("local", row.exchanged)):
            # Chunks of slots need not divide even where all together do: one slot more or less, there and back.
            slot = 2 * 2 * 4 * row.images * 16 * (loss == "local")
            assert abs(found[loss, row.processes] - formula) <= 1500 + slot


def test_closed_forms() -> None:
    alone, eight = scaling(shapes(), 64, [1, 8])
    assert alone.held == 4000 + 2000 + 4000 + 8000 + 64 * 50 + 2 * 64 * 512 * 4
    assert (alone.reduced, alone.gathered, alone.exchanged, alone.norms, alone.norm_calls) == (0, 0, 0, 0, 0)
    assert eight.images == 8
    assert eight.reduced == 2 * 7 / 8 * 4000 == 2 * eight.reduced_bf16
    assert eight.norms == 7 * 4 * (2 * 40 + 3) + 2 * 7 / 8 * 4 * 2 * 40
    assert eight.norm_calls == 6


def test_what_a_network_keeps_for_the_backward_pass() -> None:
    """Of an image of one view, in bf16: the image, the convolution's output, ReLU's output, the pooled vector."""
    method = METHODS.build({"name": "vicreg", "expander": {"widths": [8]}}, backbone=TinyBackbone())
    kept = {}
    for count in (2, 4):
        kept[count], norms, cells = _counted(method, _images(count, [32], 3, 1))
    image, maps, pooled = 3 * 32 * 32, 6 * 4 * 4, 6
    assert (kept[4] - kept[2]) // 2 == 2 * (image + maps + maps + pooled)
    weights, statistics = 6 * 3 * 8 * 8 + 6 * 8, 2 * 6
    assert 2 * kept[2] - kept[4] == 2 * weights + 4 * statistics
    assert (norms, cells) == ([6], [16])


def test_shapes_of_a_recipe() -> None:
    options = ["experiment=digits_vicregl", "optimizer=lars", "method.local.gamma=[20,4]", "method.local.gamma_by=size"]
    config = resolved(compose_config("pretrain", options))
    found = shapes_of(config)
    real = METHODS.build(config.method, backbone=_backbone(config))
    assert found.parameters == sum(p.numel() for p in real.parameters())
    assert (found.views, found.optimizer_numbers) == (2, 1)
    assert found.dim == config.method.expander.widths[-1]
    assert found.local_dim == config.method.projector.widths[-1]
    norms = [m.num_features for m in real.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert (found.norms, found.channels) == (2 * len(norms), 2 * sum(norms))  # each view by itself
    assert found.slots == 2 * (20 + 36)  # location keeps 20 of 6 x 6 cells, feature all, both ways


def _backbone(config: object) -> torch.nn.Module:
    from ssl_toolkit.backbones import create_backbone

    return create_backbone(config.backbone)  # type: ignore[attr-defined]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "overrides=['trainer.batch_size=64']"
    out = tmp_path / "out.json"
    assert main(["bench", "scaling", "recipe=digits_vicreg", small, "worlds=1,4", f"out={out}"]) == 0
    assert "received: gradients, float32" in capsys.readouterr().out
    (comparison,) = json.loads(out.read_text())["comparisons"]
    assert [row["processes"] for row in comparison["rows"]] == [1, 4]
    assert comparison["rows"][1]["exchanged"] == 0  # VICReg has no local criterion
    assert main(["bench", "scaling", "recipe=digits_vicreg", small, "worlds=3"]) == 2
    assert "trainer.batch_size=64 does not divide by 3" in capsys.readouterr().err
