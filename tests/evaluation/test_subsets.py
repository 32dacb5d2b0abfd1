"""Which training images have labels: fixed, stratified, nested, or by a list of names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled
from ssl_toolkit.registry import typed
from tests.data.trees import WNIDS, imagenet, put_image
from tests.evaluation.fakes import ArrayDataset


def images(labels: list[int]) -> ArrayDataset:
    return ArrayDataset(np.zeros((len(labels), 8, 8, 3), np.uint8), labels, num_classes=max(labels) + 1)


LABELS = np.random.default_rng(0).permutation([0] * 300 + [1] * 40 + [2] * 9).tolist()


def test_all_images_without_options() -> None:
    chosen = labelled(LabelsConfig(), images(LABELS))
    assert chosen.rows.tolist() == list(range(349))
    assert chosen.labels.tolist() == LABELS
    assert (chosen.details, list(chosen.notes), LabelsConfig().variant) == ({}, [], "")


def test_shots_are_of_each_class_and_nested() -> None:
    few, more = (labelled(LabelsConfig(shots=n), images(LABELS)) for n in (2, 9))
    assert Counter(few.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert Counter(more.labels.tolist()) == {0: 9, 1: 9, 2: 9}
    assert set(few.rows) < set(more.rows)
    assert [LABELS[row] for row in few.rows] == few.labels.tolist()
    assert (np.diff(few.rows) > 0).all()
    assert not few.notes
    assert LabelsConfig(shots=2).variant == "2shot"


def test_a_class_with_too_few_images_gives_all_and_is_noted() -> None:
    chosen = labelled(LabelsConfig(shots=20), images(LABELS))
    assert Counter(chosen.labels.tolist()) == {0: 20, 1: 20, 2: 9}
    assert list(chosen.notes) == ["1 of 3 classes have fewer than 20 training images"]


@pytest.mark.parametrize(("fraction", "counts", "variant"), [(0.01, [3, 1, 1], "1pct"), (0.1, [30, 4, 1], "10pct")])
def test_fractions_are_stratified_with_one_image_at_least(fraction: float, counts: list[int], variant: str) -> None:
    config = LabelsConfig(fraction=fraction)
    chosen = labelled(config, images(LABELS))
    assert np.bincount(chosen.labels).tolist() == counts
    assert config.variant == variant
    assert chosen.details["labels"]["images"] == sum(counts)
    assert chosen.details["labels"]["of"] == 349
    assert chosen.details["labels"]["classes"] == 3


def test_a_part_lies_in_a_larger_part_of_the_same_seed() -> None:
    rows = {f: set(labelled(LabelsConfig(fraction=f), images(LABELS)).rows.tolist()) for f in (0.01, 0.1, 0.5)}
    assert rows[0.01] < rows[0.1] < rows[0.5]
    other = labelled(LabelsConfig(fraction=0.1, seed=1), images(LABELS))
    assert set(other.rows.tolist()) != rows[0.1]


def test_the_lists_are_the_same_on_every_machine() -> None:
    """Positions worked out with Philox's raw numbers by hand: its stream is fixed by numpy's policy (NEP 19)."""
    numbers = np.random.Philox(key=3).random_raw(349)
    expected = sorted(
        row
        for kind in range(3)
        for row in sorted((i for i in range(349) if LABELS[i] == kind), key=lambda i: int(numbers[i]))[:4]
    )
    chosen = labelled(LabelsConfig(shots=4, seed=3), images(LABELS))
    assert chosen.rows.tolist() == expected
    assert len(chosen.details["labels"]["sha256"]) == 64


@pytest.fixture
def tree(tmp_path: Path) -> ImageDataset:
    return build_dataset({"name": "imagenet", "root": str(imagenet(tmp_path / "data"))}, "train")


def write(path: Path, text: str) -> LabelsConfig:
    path.write_text(text)
    return LabelsConfig(list=str(path))


def test_an_official_list(tree: ImageDataset, tmp_path: Path) -> None:
    config = write(
        tmp_path / "1percent.txt", f"{WNIDS[1]}_3.JPEG\n\n{WNIDS[0]}_0.JPEG\r\n{WNIDS[2]}/{WNIDS[2]}_7.JPEG\n"
    )
    chosen = labelled(config, tree)
    assert [tree.relative(row) for row in chosen.rows] == [  # type: ignore[attr-defined]
        f"{WNIDS[0]}/{WNIDS[0]}_0.JPEG",
        f"{WNIDS[1]}/{WNIDS[1]}_3.JPEG",
        f"{WNIDS[2]}/{WNIDS[2]}_7.JPEG",
    ]
    assert chosen.labels.tolist() == [0, 1, 2]
    assert config.variant == "1percent"
    assert chosen.details["labels"]["images"] == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{WNIDS[1]}_3.JPEG\n{WNIDS[1]}_99.JPEG\n", "line 2: n02102040_99.JPEG is not one of the 24 training images"),
        (f"{WNIDS[1]}_3.JPEG\n\n{WNIDS[1]}_3.JPEG\n", "line 3: n02102040_3.JPEG is also on line 1"),
        ("\n\n", "list.txt is empty: one file name per line"),
    ],
)
def test_a_list_that_does_not_fit(text: str, words: str, tree: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        labelled(write(tmp_path / "list.txt", text), tree)


def test_a_list_that_is_not_there(tree: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read labels\.list=.*none.txt: No such file"):
        labelled(LabelsConfig(list=str(tmp_path / "none.txt")), tree)


def test_a_name_of_several_images_needs_its_path(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for number in range(12):
            put_image(tmp_path / "data" / kind / f"{number}.jpg", 12 * number + len(kind))
    data = build_dataset({"name": "folder", "root": str(tmp_path / "data"), "val_fraction": 0.2}, "train")
    names = [data.relative(i) for i in range(len(data))]  # type: ignore[attr-defined]
    twice = next(n.split("/")[1] for n in names if sum(m.endswith("/" + n.split("/")[1]) for m in names) == 2)
    with pytest.raises(UserError, match="is the name of several images: write the path below"):
        labelled(write(tmp_path / "list.txt", twice), data)
    chosen = labelled(write(tmp_path / "list.txt", f"./dog/{twice}"), data)
    assert [names[row] for row in chosen.rows] == [f"dog/{twice}"]


def test_images_without_names_take_no_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the images of arrays have no names: use labels\.shots or labels\.fraction"):
        labelled(write(tmp_path / "list.txt", "a.jpg"), images(LABELS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": 0}, "shots must be 1 or more"),
        ({"fraction": 0.0}, "fraction must be between 0 and 1"),
        ({"fraction": 1.0}, "fraction must be between 0 and 1"),
        ({"shots": 1, "fraction": 0.1}, "give one of shots, fraction and list"),
        ({"shots": 1, "list": "x.txt"}, "give one of"),
        ({"seed": -1}, "seed must not be negative"),
        ({"shot": 1}, "did you mean 'shots'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(LabelsConfig, options, "linear.labels")
