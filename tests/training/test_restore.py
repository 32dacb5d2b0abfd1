"""The method of a run, read back: the same as the one that was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_toolkit import commands
from ssl_toolkit.backbones import read_backbone
from ssl_toolkit.cli import main
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed
from ssl_toolkit.training import load_method, read_run_config
from ssl_toolkit.training.checkpoints import checkpoint_path
from ssl_toolkit.training.examples import save_match_examples
from ssl_toolkit.views import ViewsConfig
from tests.helpers import quick_overrides


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps whose report is not needed."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "write_report", lambda run: run)
        assert main(["pretrain", *quick_overrides(home), "name=run", "monitor.knn_every=null"]) == 0
    return home / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_it_matches_as_the_method_did_that_was_trained(run: Path, tmp_path: Path) -> None:
    method = load_method(run)
    assert not any(module.training for module in method.modules())
    assert method.local_vectors(torch.randn(2, method.backbone.num_features, 3, 3)).shape == (2, 9, 128)
    config = read_run_config(run)
    dataset = build_dataset(config.data, "train")
    normalize = Normalize(dataset.config.mean, dataset.config.std)
    views = typed(ViewsConfig, config.views, "views")
    save_match_examples(tmp_path / "again.npz", method, dataset, views, normalize, seed=config.seed)
    with np.load(run / "examples" / "matches.npz") as before, np.load(tmp_path / "again.npz") as now:
        assert sorted(before) == sorted(now)
        for name in before:
            np.testing.assert_array_equal(before[name], now[name], err_msg=name)


def test_its_backbone_is_the_exported_one_and_random_generators_stay(run: Path) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    loaded = load_method(run).backbone.state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    exported = read_backbone(run / "backbone.safetensors")[0].state_dict()
    assert loaded.keys() == exported.keys()
    assert all(torch.equal(loaded[key], exported[key]) for key in exported)


def test_what_cannot_be_read_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run=.*nowhere does not exist"):
        load_method(tmp_path / "nowhere")
    with pytest.raises(UserError, match="unknown checkpoint 'lats': did you mean 'last'"):
        load_method(run, "lats")
    path = checkpoint_path(run, "last")
    stored = torch.load(path, weights_only=True)
    del stored["state_dict"]["method.local_head.0.weight"]
    torch.save(stored, path)
    with pytest.raises(UserError, match=r"last\.ckpt does not fit vicregl on tiny_resnet: .*local_head\.0\.weight"):
        load_method(run)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        load_method(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_method(run)
