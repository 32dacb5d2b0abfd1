"""ImageNet and Imagenette: class folders, names, subsets."""

import json

import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees
from tests.data.trees import WNIDS


def build(root, split="train", name="imagenet", **options):
    return build_dataset({"name": name, "root": str(root), **options}, split)


def names(data):
    return [data.relative(i) for i in range(len(data))]


def fails(root, split="train", **options):
    with pytest.raises(UserError) as caught:
        build(root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path):
    return trees.imagenet(tmp_path / "imagenet")


def test_splits_and_labels(root):
    (root / "train" / WNIDS[0] / ".hidden.JPEG").write_bytes(b"x")
    (root / "train" / WNIDS[0] / "notes.txt").write_text("x")
    train, val, test = (build(root, split) for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (24, 9)
    assert names(val) == names(test)
    assert set(names(train)) == {f"{w}/{w}_{i}.JPEG" for w in WNIDS for i in range(8)}
    assert train.classes == val.classes == WNIDS
    for data in (train, val):
        assert [WNIDS[k] for k in data.labels()] == [name.split("/")[0] for name in names(data)]
    assert train.path(0) == root / "train" / names(train)[0]
    assert train.encoded(0).tobytes() == train.path(0).read_bytes()
    assert train.image(0).shape == (6, 4, 3)


def test_the_layout_of_the_whole_archive(root, tmp_path):
    inner = tmp_path / "kaggle" / "ILSVRC" / "Data"
    inner.mkdir(parents=True)
    root.rename(inner / "CLS-LOC")
    trees.write_text(tmp_path / "kaggle" / "LOC_synset_mapping.txt", [f"{WNIDS[0]} tench, Tinca tinca"])
    data = build(tmp_path / "kaggle")
    assert len(data) == 24
    assert data.classes[0] == "tench"


def test_names_where_there_is_a_mapping(root):
    index = {str(i): [w, n] for i, (w, n) in enumerate(zip(WNIDS, ("tench", "English_springer", "crane")))}
    (root / "imagenet_class_index.json").write_text(json.dumps(index))
    assert build(root).classes == ("tench", "English springer", "crane")
    lines = [f"{WNIDS[0]} crane", f"{WNIDS[1]} English springer, English springer spaniel", f"{WNIDS[2]} crane, bird"]
    trees.write_text(root / "LOC_synset_mapping.txt", lines)
    data = build(root, "val")
    assert data.classes == (f"crane ({WNIDS[0]})", "English springer", f"crane ({WNIDS[2]})")
    assert data.wnids == list(WNIDS)
    trees.write_text(root / "LOC_synset_mapping.txt", ["tench"])
    assert "LOC_synset_mapping.txt line 1" in fails(root)
    (root / "LOC_synset_mapping.txt").unlink()
    (root / "imagenet_class_index.json").write_text("[1]")
    assert "imagenet_class_index.json" in fails(root)


def test_subset_restricts_training_only(root, tmp_path):
    chosen = [f"{WNIDS[2]}_5.JPEG", f"{WNIDS[0]}_1.JPEG", f"{WNIDS[0]}_0.JPEG"]
    file = trees.write_text(tmp_path / "1percent.txt", [*chosen, ""])
    data = build(root, subset=str(file))
    assert names(data) == [f"{n.split('_')[0]}/{n}" for n in chosen]
    assert data.labels().tolist() == [2, 0, 0]
    assert data.classes == WNIDS
    assert len(build(root, "val", subset=str(file))) == 9


@pytest.mark.parametrize(
    ("lines", "needle"),
    [
        ([f"{WNIDS[0]}_0.JPEG", "n99999999_1.JPEG"], "line 2: n99999999_1.JPEG is of none of the 3 classes"),
        ([f"{WNIDS[0]}_0.JPEG", f"{WNIDS[1]}_1.JPEG", f"{WNIDS[0]}_0.JPEG"], "line 3"),
        ([f"{WNIDS[0]}_0.JPEG", f"{WNIDS[0]}_77.JPEG"], "line 2: there is no"),
        (["", ""], "is empty"),
    ],
)
def test_subsets_that_do_not_fit(root, tmp_path, lines, needle):
    file = trees.write_text(tmp_path / "subset.txt", lines)
    line = fails(root, subset=str(file))
    assert needle in line
    assert str(file) in line


def test_a_subset_that_is_not_there(root, tmp_path):
    assert str(tmp_path / "no.txt") in fails(root, subset=str(tmp_path / "no.txt"))


def test_validation_images_that_are_not_sorted(root):
    for wnid in WNIDS:
        for i, path in enumerate((root / "val" / wnid).iterdir()):
            path.rename(root / "val" / f"ILSVRC2012_val_{wnid}{i}.JPEG")
        (root / "val" / wnid).rmdir()
    line = fails(root, "val")
    assert f"sort them into {root / 'val'}/n01440764" in line
    assert len(build(root)) == 24


def test_folders_that_are_not_right(root, tmp_path):
    assert "data.root=PATH" in fails(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.root is not set"):
        build_dataset({"name": "imagenet"}, "train")
    trees.put_image(root / "val" / "n00000001" / "a.JPEG")
    assert "'n00000001'" in fails(root, "val")
    (root / "val").rename(root / "validation")
    assert f"cannot read {root / 'val'}" in fails(root, "val")
    tars = tmp_path / "tars"
    trees.write_text(tars / "train" / "n01440764.tar", [])
    assert "unpack" in fails(tars)
    empty = tmp_path / "empty"
    (empty / "train" / WNIDS[0]).mkdir(parents=True)
    assert "no images" in fails(empty)
    (empty / "train" / WNIDS[0]).rmdir()
    assert "no class folders" in fails(empty)


def test_imagenette_reports_on_the_official_val(tmp_path):
    trees.imagenette(tmp_path)
    train, val, test = (build(tmp_path, split, "imagenette") for split in ("train", "val", "test"))
    assert len(test) == 9
    assert all("val_" in name for name in names(test))
    assert not set(names(train)) & set(names(val))
    assert set(names(train) + names(val)) == {f"{w}/{w}_{i}.JPEG" for w in WNIDS for i in range(20)}
    assert 1 <= len(val) < 20
    assert train.classes == test.classes == ("tench", "English springer", "parachute")
    for data in (train, val, test):
        assert [WNIDS[k] for k in data.labels()] == [name.split("/")[0] for name in names(data)]


def test_imagenette_sizes(tmp_path):
    trees.imagenette(tmp_path, "imagenette2-160")
    assert len(build(tmp_path, "test", "imagenette", size="160px")) == 9
    assert len(build(tmp_path / "imagenette2-160", "test", "imagenette")) == 9
    line = fails(tmp_path, name="imagenette")
    assert "imagenette2-320" in line
    assert "data.download=true" in line
    assert "did you mean '160px'" in fails(tmp_path, name="imagenette", size="160")
