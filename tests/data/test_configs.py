import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import ssl_toolkit.configs
from ssl_toolkit.data import DATASETS, SPLITS, build_dataset
from ssl_toolkit.errors import UserError

FOLDER = Path(ssl_toolkit.configs.__file__).parent / "data"


def test_each_data_set_has_a_yaml_and_each_yaml_a_data_set():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(DATASETS.names())


@pytest.mark.parametrize("name", DATASETS.names())
def test_yaml_lists_every_option_with_its_default_and_a_comment(name):
    path = FOLDER / f"{name}.yaml"
    written = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert written.pop("name") == name
    assert written == dataclasses.asdict(DATASETS.entry(name).schema())
    for line in path.read_text().splitlines():
        assert line.startswith(("#", "name:")) or "  # " in line, line


def test_evaluation_follows_the_size_of_the_scenes():
    config = OmegaConf.create({"data": OmegaConf.load(FOLDER / "digit_scenes.yaml")})
    config.data.size = 48
    options = DATASETS.options(config.data)
    assert (options.size, options.eval_resize, options.eval_size) == (48, 48, 48)


def test_unknown_names_and_splits():
    with pytest.raises(UserError, match="did you mean 'digit_scenes'"):
        build_dataset({"name": "digit_scene"}, "train")
    with pytest.raises(UserError, match=r"unknown split 'validation'.* val") as caught:
        build_dataset({"name": "digit_scenes"}, "validation")
    assert "\n" not in str(caught.value)
    assert SPLITS == ("train", "val", "test")
