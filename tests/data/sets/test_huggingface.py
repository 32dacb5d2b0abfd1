"""Hugging Face data sets from disk: columns, labels, splits, damaged images, and never the network."""

import io
import pickle
import socket

import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.layout import held_out
from ssl_toolkit.errors import UserError
from tests.data.trees import put_image

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def closed_world(tmp_path, monkeypatch):
    """A cache of its own, and no way out: any look-up or connection fails the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    reached = []

    def refuse(*args, **kwargs):
        reached.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    datasets.disable_progress_bars()
    yield
    assert reached == []


def encoded(value, form="PNG"):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 4, 3), value, np.uint8)).save(stream, form)
    return stream.getvalue()


def table(start, count, labels=None, kind=None, image="image"):
    numbers = range(start, start + count)
    columns = {image: [{"bytes": encoded(i), "path": f"{i}.png"} for i in numbers], "other": [str(i) for i in numbers]}
    features = {image: datasets.Image(), "other": datasets.Value("string")}
    if kind is not None:
        columns["label"] = [i % 3 for i in numbers] if labels is None else labels
        features["label"] = kind
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


NAMES = datasets.ClassLabel(names=["cat", "dog", "owl"])


def saved(tmp_path, **tables):
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def hugging(path, split="train", **options):
    return build_dataset({"name": "huggingface", "path": str(path), **options}, split)


def values(data):
    return [int(data.image(i)[0, 0, 0]) for i in range(len(data))]


def fails(needle, *args, **options):
    with pytest.raises(UserError) as caught:
        hugging(*args, **options)
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)


def test_held_out_part_of_train(tmp_path):
    path = saved(tmp_path, train=table(0, 40, kind=NAMES))
    train, val, test = (hugging(path, split) for split in ("train", "val", "test"))
    out = sorted(int(name) for name in held_out([str(i) for i in range(40)], 0.1))
    assert values(val) == values(test) == out
    assert values(train) == sorted(set(range(40)) - set(out))
    assert train.classes == val.classes == ("cat", "dog", "owl")
    for data in (train, val):
        assert data.labels().tolist() == [v % 3 for v in values(data)] == [data.label(i) for i in range(len(data))]
        assert data.encoded(1).tobytes() == encoded(values(data)[1])
    assert train.fingerprint() != val.fingerprint() == test.fingerprint()
    assert pickle.loads(pickle.dumps(train)).image(0).shape == (6, 4, 3)
    assert hugging(path, in_channels=1).image(0).shape == (6, 4, 1)
    assert hugging(path, bits=16).image(0).dtype == np.float32


def test_splits_of_their_own(tmp_path):
    path = saved(tmp_path, train=table(0, 9, kind=NAMES), validation=table(9, 4, kind=NAMES),
                 test=table(13, 5, labels=[-1] * 5, kind=NAMES))  # fmt: skip
    options = {"val_split": "validation"}
    assert values(hugging(path, **options)) == list(range(9))
    assert values(hugging(path, "val", **options)) == values(hugging(path, "test", **options)) == [9, 10, 11, 12]
    fails("has the label -1 (row 0)", path, "test", test_split="test", **options)
    hidden = hugging(path, "test", test_split="test", label_column=None, **options)
    assert values(hidden) == [13, 14, 15, 16, 17]
    assert hidden.classes is None
    with pytest.raises(NotImplementedError):
        hidden.labels()
    for split in ("train", "val", "test"):
        fails("has no split 'valid': did you mean 'validation'?", path, split, val_split="valid")
    only_test = {"test_split": "test", "label_column": None}
    train, val = (values(hugging(path, split, **only_test)) for split in ("train", "val"))
    assert sorted(train + val) == list(range(9))


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [
        (datasets.Value("int32"), [2, 0, 1, 0, 2, 1], ("0", "1", "2")),
        (datasets.Value("string"), ["owl", "cat", "dog", "cat", "owl", "dog"], ("cat", "dog", "owl")),
        (datasets.Value("large_string"), ["owl", "cat", "dog", "cat", "owl", "dog"], ("cat", "dog", "owl")),
    ],
)
def test_kinds_of_labels(tmp_path, kind, labels, classes):
    data = hugging(saved(tmp_path, train=table(0, 6, labels=labels, kind=kind)), val_fraction=0.0)
    assert data.classes == classes
    assert data.labels().tolist() == [2, 0, 1, 0, 2, 1]
    assert data.labels().dtype == np.int64


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (datasets.Value("float32"), [0.0, 1.0, 2.0]),
        (datasets.Value("bool"), [True, False, True]),
        (datasets.Value("int64"), [0, None, 1]),
        (datasets.Value("int64"), [0, -1, 1]),
        ([datasets.Value("int64")], [[0], [1, 2], []]),
    ],
)
def test_columns_that_are_no_labels(tmp_path, kind, labels):
    path = saved(tmp_path, train=table(0, 3, labels=labels, kind=kind))
    fails("label", path, val_fraction=0.0)
    assert hugging(path, label_column=None, val_fraction=0.0).classes is None


def test_labels_that_training_has_not(tmp_path):
    words = datasets.Value("string")
    path = saved(
        tmp_path, train=table(0, 2, labels=["a", "b"], kind=words), validation=table(2, 1, labels=["c"], kind=words)
    )
    fails("'validation' of", path, "val", val_split="validation")
    fails("the label c (row 0)", path, "val", val_split="validation")


def test_folders_of_parquet_and_of_images(tmp_path):
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    table(0, 9, kind=NAMES).to_parquet(str(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet"))
    table(9, 4, kind=NAMES).to_parquet(str(tmp_path / "parquet" / "data" / "validation-00000-of-00001.parquet"))
    data = hugging(tmp_path / "parquet", "val", val_split="validation")
    assert values(data) == [9, 10, 11, 12]
    assert data.classes == ("cat", "dog", "owl")
    for split, name, count in (("train", "bird", 4), ("train", "cat", 5), ("test", "cat", 3)):
        for i in range(count):
            put_image(tmp_path / "folder" / split / name / f"{i}.jpg", 10 * i)
    data = hugging(tmp_path / "folder", val_fraction=0.0)
    assert data.classes == ("bird", "cat")
    assert np.bincount(data.labels()).tolist() == [4, 5]
    assert data.image(0).shape == (6, 4, 3)
    assert data.encoded(0)[:3].tolist() == [0xFF, 0xD8, 0xFF]
    assert len(hugging(tmp_path / "folder", "test", test_split="test")) == 3


def test_a_single_saved_table(tmp_path):
    table(0, 30, kind=NAMES).save_to_disk(str(tmp_path / "one"))
    assert len(hugging(tmp_path / "one")) + len(hugging(tmp_path / "one", "val")) == 30


def test_selected_and_shuffled_rows(tmp_path):
    whole = table(0, 30, kind=NAMES).shuffle(seed=1).select(range(5, 25))
    wanted = [int(text) for text in whole["other"]]
    data = hugging(saved(tmp_path, train=whole), val_fraction=0.0)
    assert values(data) == wanted
    assert data.labels().tolist() == [v % 3 for v in wanted]


def test_damaged_images_are_named(tmp_path, monkeypatch):
    rows = [{"bytes": encoded(0)[:45], "path": None}, {"bytes": None, "path": str(tmp_path / "gone.png")},
            {"bytes": None, "path": "https://example.com/x.png"}, {"bytes": b"", "path": None}, None]  # fmt: skip
    features = datasets.Features({"image": datasets.Image(decode=False)})
    whole = datasets.Dataset.from_dict({"image": rows}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=whole))
    data = hugging("any", label_column=None, val_fraction=0.0)
    for index, needle in enumerate(("cannot decode image 0 of", "gone.png", "image 2 of", "image 3 of", "image 4 of")):
        with pytest.raises(UserError) as caught:
            data.image(index)
        assert needle in str(caught.value)
        assert "\n" not in str(caught.value)


def test_columns_that_are_not_there(tmp_path):
    path = saved(tmp_path, train=table(0, 5, kind=NAMES, image="img"))
    fails("has no column 'image': did you mean 'img'", path)
    fails("data.label_column", path, image_column="img", label_column="lable")
    fails("is not of images; of those it has ['img']", path, image_column="other")
    assert len(hugging(path, image_column="img", val_fraction=0.0)) == 5


def test_nothing_is_fetched_unless_asked(tmp_path):
    """The fixture fails this test if anything asks for the address of a host."""
    fails("data.path is not set", "")
    for name in (
        "someone/some-data",
        "some-data",
        "hf://datasets/a/b",
        "https://example.com/x.parquet",
        "buckets/a/b/c",
    ):
        fails("data.download=true", name)
    (tmp_path / "card").mkdir()
    card = "---\nconfigs:\n- config_name: default\n  data_files: https://example.com/x.parquet\n---\nwords\n"
    (tmp_path / "card" / "README.md").write_text(card)
    fails("data.download=true", tmp_path / "card")
    assert not datasets.config.HF_HUB_OFFLINE
    (tmp_path / "empty").mkdir()
    fails("cannot load", tmp_path / "empty")


def test_asked_for_it_is_left_to_the_package(tmp_path, monkeypatch):
    calls = []

    def stand_in(path, name):
        calls.append((path, name, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(train=table(0, 20, kind=NAMES))

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    assert len(hugging("someone/data", download=True, config_name="small", val_fraction=0.0)) == 20
    assert calls == [("someone/data", "small", False)]
    hugging("someone/data")
    assert calls[1] == ("someone/data", None, True)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    fails("pip install 'ssl-toolkit[hf]'", tmp_path)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_split": "train"}, "another split"),
        ({"train_split": "all", "test_split": "all"}, "another split"),
        ({"bits": 9}, "bits"),
    ],
)
def test_bad_options(tmp_path, options, needle):
    fails(needle, tmp_path, **options)


def test_classes_that_a_split_numbers_otherwise(tmp_path):
    other = datasets.ClassLabel(names=["owl", "cat", "dog"])
    path = saved(tmp_path, train=table(0, 30, kind=NAMES), val=table(30, 6, labels=[0, 1, 2] * 2, kind=other))
    val = hugging(path, "val", val_split="val")
    assert val.classes == ("cat", "dog", "owl")
    assert [val.classes[label] for label in val.labels()] == ["owl", "cat", "dog"] * 2
    strange = datasets.ClassLabel(names=["cat", "dog", "cow"])
    path = saved(tmp_path / "more", train=table(0, 30, kind=NAMES), val=table(30, 3, labels=[0, 1, 2], kind=strange))
    fails("has the label cow (row 2)", path, "val", val_split="val")
    path = saved(tmp_path / "less", train=table(0, 30, kind=NAMES), val=table(30, 3, labels=[0, -1, 1], kind=other))
    fails("has the label -1 (row 1)", path, "val", val_split="val")


def test_saved_tables_have_one_configuration(tmp_path):
    fails("data.config_name=small", saved(tmp_path, train=table(0, 4, kind=NAMES)), config_name="small")


def test_the_reason_is_the_first_cause(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("An error occurred while generating the dataset") from ValueError("row 3 is odd")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    fails("(row 3 is odd)", tmp_path)
