"""Two processes: the same detectors and the same numbers as one, and one error for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.backbones.base import BackboneConfig
from ssl_toolkit.criteria.distributed import rank
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import EvalData
from ssl_toolkit.evaluation.detection import DetectionConfig, DetectionFinetuneConfig
from ssl_toolkit.evaluation.detection.finetune import DetectionFinetune
from ssl_toolkit.evaluation.detection.frozen import Detection
from ssl_toolkit.evaluation.detection.metrics import Boxes
from ssl_toolkit.evaluation.detection.predicting import Found, Reading, find
from ssl_toolkit.processes.world import current_world, join
from tests.evaluation.detection.fakes import ObjectDataset, all_splits, detection_data, squares
from tests.evaluation.detection.test_finetune import QUICK as FINETUNE
from tests.evaluation.detection.test_masks import triangle_splits
from tests.evaluation.fakes import CPU
from tests.training.test_distributed import in_two_processes


def data() -> EvalData:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneConfig("convnext_atto"))  # no statistics of a batch
    backbone.eval()
    return detection_data(all_splits(9), backbone)


def linear() -> Any:
    options = DetectionConfig(
        lrs=[0.003, 0.03], iterations=12, batch_size=5, size=32, scales=[0.8, 1.3], examples=0, features="stages"
    )
    return Detection(options).run(data())


def finetuned() -> Any:
    options = DetectionFinetuneConfig(**{**FINETUNE, "examples": 0}, neck="fpn", anchors=[8, 16, 32, 64, 128])
    return DetectionFinetune(options).run(data())


def finetuned_masks() -> Any:
    options = DetectionFinetuneConfig(
        **{**FINETUNE, "examples": 0}, neck="fpn", anchors=[8, 16, 32, 64, 128], masks=True
    )
    datasets: Any = triangle_splits(9)
    return DetectionFinetune(options).run(detection_data(datasets, data().source.backbone))


def marks(images: torch.Tensor) -> list[list[Found]]:
    """A box and a mask for each image, from its pixels: what is found is known without training."""
    values = images.float().sum((1, 2, 3))
    box, mask = torch.tensor([[0.0, 0, 1, 1]]), torch.eye(4)[None]
    return [[Found(box * (1 + v % 7), v[None], v[None].long() % 3, mask) for v in values]]


def marked() -> Boxes:
    (found,) = find(marks, squares(11), Reading(32, None, 3), CPU, "marks")
    return found


def as_lists(found: Boxes) -> list[Any]:
    assert found.masks is not None
    counts = [run["counts"].decode() for run in found.masks]
    return [found.image.tolist(), found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), counts]


class Broken(ObjectDataset):
    def image(self, index: int) -> Any:
        if index == 3:
            raise UserError("image 3 is broken")
        return super().image(index)


def _broken() -> str:
    whole = squares(6)
    try:
        find(marks, Broken(whole.images, whole.things), Reading(32, None, 2), CPU, "marks")
    except UserError as error:
        return str(error)
    return "none"


def _both(folder: Path) -> None:
    join(current_world(), CPU)
    found = marked()
    result = {
        "linear": [linear().metrics, linear().grid],
        "finetuned": finetuned().metrics,
        "masks": finetuned_masks().metrics,
        "found": as_lists(found),
        "broken": _broken(),
    }
    (folder / f"{rank()}.json").write_text(json.dumps(result))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes(_both, tmp_path)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert first == second
    found = marked()
    assert first["found"] == as_lists(found)
    assert found.image.tolist() == list(range(11))
    alone = linear()
    assert first["linear"][0] == pytest.approx(alone.metrics, abs=0.5)
    for mine, theirs in zip(alone.grid, first["linear"][1]):
        assert theirs["test_ap"] == pytest.approx(mine["test_ap"], abs=0.5)
    assert set(first["masks"]) == {"ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75"}
    assert first["broken"] == _broken() == "image 3 is broken"


def _weights(folder: Path) -> None:
    join(current_world(), CPU)
    torch.save(trained_heads(), folder / f"{rank()}.pt")


def trained_heads() -> list[torch.Tensor]:
    from ssl_toolkit.evaluation.detection import frozen

    kept = []
    original = frozen.predictor

    def keep(heads: Any, *rest: Any) -> Any:
        kept.extend(p.detach().clone() for p in heads.parameters())
        return original(heads, *rest)

    frozen.predictor = keep  # type: ignore[assignment]
    try:
        linear()
    finally:
        frozen.predictor = original
    return kept


def test_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    in_two_processes(_weights, tmp_path)
    alone = trained_heads()
    for number in range(2):
        for mine, theirs in zip(alone, torch.load(tmp_path / f"{number}.pt", weights_only=True)):
            assert torch.allclose(mine, theirs, atol=1e-4)
            assert mine.abs().sum() > 0
