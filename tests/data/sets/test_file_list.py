"""Lists of images: txt, csv and npy, splits, labels, and what can be wrong with them."""

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError
from tests.data import trees


@pytest.fixture
def root(tmp_path):
    for i in range(40):
        trees.put_image(tmp_path / "img" / f"{i:02d}.jpg", i)
    return tmp_path


def build(file, split="train", **options):
    return build_dataset({"name": "file_list", "file": str(file), **options}, split)


def names(data):
    return [data.relative(i) for i in range(len(data))]


def fails(file, split="train", **options):
    with pytest.raises(UserError) as caught:
        build(file, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def image(i):
    return f"img/{i:02d}.jpg"


ALL = [image(i) for i in range(40)]


def write(path, *lines):
    return trees.write_text(path, list(lines))


def test_plain_paths(root):
    file = write(root / "all.txt", "# a comment", "", *ALL[:20], "   ", *ALL[20:])
    train, val, test = (build(file, split) for split in ("train", "val", "test"))
    assert train.classes is None
    assert not set(names(train)) & set(names(val))
    assert set(names(train) + names(val)) == set(ALL)
    assert names(val) == names(test)
    for i, name in enumerate(names(train)):
        assert train.path(i) == root / name
        assert abs(int(train.image(i)[0, 0, 0]) - int(name[4:6])) <= 1
    with pytest.raises(NotImplementedError):
        train.labels()


def test_paths_with_spaces_digits_and_any_script(root):
    odd = ["a folder/größe 1.jpg", "b 2/图 3.jpg", "c.d 4.jpg"]
    for i, name in enumerate(odd):
        trees.put_image(root / name, i)
    file = write(root / "odd.txt", *odd)
    data = build(file, val_fraction=0.0)
    assert names(data) == odd
    assert data.classes is None
    assert data.image(0).shape == (6, 4, 3)
    (root / "bom.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(odd).encode())
    assert names(build(root / "bom.txt", val_fraction=0.0)) == odd


def test_labels_after_a_tab(root):
    file = write(root / "tab.txt", *(f"{name}\t{('dog', 'big cat', 'bird')[i % 3]}" for i, name in enumerate(ALL)))
    data = build(file, val_fraction=0.0)
    assert data.classes == ("big cat", "bird", "dog")
    assert [data.classes[k] for k in data.labels()] == [("dog", "big cat", "bird")[i % 3] for i in range(40)]
    assert names(data) == ALL


@pytest.mark.parametrize("between", ["\t", " ", "   "])
def test_integer_labels(root, between):
    file = write(root / "int.txt", *(f"{name}{between}{(3 * i) % 11}" for i, name in enumerate(ALL)))
    data = build(file, val_fraction=0.0)
    assert data.classes == tuple(str(i) for i in range(11))
    assert data.labels().tolist() == [(3 * i) % 11 for i in range(40)]
    assert names(data) == ALL


def test_trailing_integers_are_labels_only_where_every_line_has_one(root):
    (root / "img" / "00.jpg").rename(root / "img" / "00.jpg 7")
    file = write(root / "some.txt", "img/00.jpg 7", *ALL[1:])
    data = build(file, val_fraction=0.0)
    assert data.classes is None
    assert names(data)[0] == "img/00.jpg 7"


def test_csv(root):
    lines = [f'"{name}",{i % 4},{("train", "train", "val", "test")[i % 4]},x' for i, name in enumerate(ALL)]
    file = write(root / "all.csv", "path,label,split,note", *lines)
    for split, rest in (("train", {0, 1}), ("val", {2}), ("test", {3})):
        if split != "train":
            assert "training has 0 to 1" in fails(file, split)
        else:
            assert set(build(file, split).labels().tolist()) == rest
    write(file, "split,label,path", *(f"{('train', 'val')[i % 2]},{'ab'[i // 2 % 2]},{n}" for i, n in enumerate(ALL)))
    train, val, test = (build(file, split) for split in ("train", "val", "test"))
    assert names(train) == ALL[::2]
    assert names(val) == names(test) == ALL[1::2]
    assert train.classes == val.classes == ("a", "b")
    assert val.labels().tolist() == [i // 2 % 2 for i in range(1, 40, 2)]
    write(file, "path,split", *(f"{n},{'test' if i < 5 else 'train'}" for i, n in enumerate(ALL)))
    train, val, test = (build(file, split) for split in ("train", "val", "test"))
    assert names(test) == ALL[:5]
    assert set(names(train) + names(val)) == set(ALL[5:])
    assert not set(names(train)) & set(names(val))
    assert train.classes is None


def test_csv_quotes_commas(root):
    trees.put_image(root / "a, b.jpg")
    file = write(root / "q.csv", "path,label", '"a, b.jpg","x, y"', f"{ALL[0]},z")
    data = build(file, val_fraction=0.0)
    assert names(data) == ["a, b.jpg", ALL[0]]
    assert data.classes == ("x, y", "z")


@pytest.mark.parametrize("kind", [str, bytes])
def test_npy_pairs(root, kind):
    lists = {"train": ALL[:30], "val": ALL[30:]}
    for split, paths in lists.items():
        full = [str(root / name) for name in paths]  # as in the official code: opened as they are
        np.save(root / f"{split}_images.npy", np.array(full if kind is str else [p.encode() for p in full]))
        np.save(root / f"{split}_labels.npy", np.array([int(p[4:6]) % 7 for p in paths]))
    options = {
        "labels_file": str(root / "train_labels.npy"),
        "val_file": str(root / "val_images.npy"),
        "val_labels_file": str(root / "val_labels.npy"),
    }
    for split in ("train", "val", "test"):
        data = build(root / "train_images.npy", split, **options)
        expected = lists["train" if split == "train" else "val"]
        assert [str(data.path(i)) for i in range(len(data))] == [str(root / name) for name in expected]
        assert data.labels().tolist() == [int(name[4:6]) % 7 for name in expected]
        assert data.classes == tuple("0123456")
        assert data.image(0).shape == (6, 4, 3)
    assert build(root / "train_images.npy", val_fraction=0.0).classes is None
    del options["val_labels_file"]
    assert "data.val_labels_file" in fails(root / "train_images.npy", **options)


def test_where_relative_paths_start(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    file = write(elsewhere / "train.txt", *(name.removeprefix("img/") for name in ALL))
    assert str(elsewhere / "00.jpg") in fails(file, val_fraction=0.0)
    data = build(file, val_fraction=0.0, root=str(root / "img"))
    assert data.path(3) == root / "img" / "03.jpg"
    write(file, *(str(root / name) for name in ALL))
    assert build(file, val_fraction=0.0).path(3) == root / ALL[3]
    assert "data.root=" in fails(file, root=str(root / "nowhere"))


def test_lists_for_each_split(root):
    train = write(root / "train.txt", *(f"{n}\t{'abc'[i % 3]}" for i, n in enumerate(ALL[:20])))
    val = write(root / "sub" / "val.txt", *(f"../{n}\tb" for n in ALL[20:25]))
    test = write(root / "test.txt", *(f"{n}\t{'ca'[i % 2]}" for i, n in enumerate(ALL[25:])))
    both = {"val_file": str(val), "test_file": str(test)}
    data = {split: build(train, split, **both) for split in ("train", "val", "test")}
    assert names(data["train"]) == ALL[:20]
    assert data["val"].path(0).read_bytes() == (root / ALL[20]).read_bytes()
    assert data["val"].labels().tolist() == [1] * 5
    assert data["test"].labels().tolist() == [(2, 0)[i % 2] for i in range(15)]
    assert {d.classes for d in data.values()} == {("a", "b", "c")}
    only_val = build(train, "test", val_file=str(val))
    assert names(only_val) == names(data["val"])
    only_test = {split: build(train, split, test_file=str(test)) for split in ("train", "val", "test")}
    assert names(only_test["test"]) == ALL[25:]
    assert set(names(only_test["train"]) + names(only_test["val"])) == set(ALL[:20])


def test_each_split_is_labelled_or_not(root):
    plain, labelled = (
        write(root / "p.txt", *ALL[:20]),
        write(root / "l.txt", *(f"{n} {i}" for i, n in enumerate(ALL[20:]))),
    )
    assert build(labelled, "val", val_file=str(plain)).classes is None
    assert build(plain, "val", val_file=str(labelled)).labels().tolist() == list(range(20))
    mixed = write(root / "m.txt", *(f"{n}\t{('7', 'b')[i % 2]}" for i, n in enumerate(ALL[:20])))
    sevens = write(root / "s.txt", *(f"{n} 7" for n in ALL[20:]))
    assert build(mixed, "val", val_file=str(sevens)).labels().tolist() == [0] * 20


def test_gray_and_other_options_of_files(root):
    file = write(root / "all.txt", *ALL)
    assert build(file, in_channels=1).image(0).shape == (6, 4, 1)
    assert build(file, in_channels=1).encoded(0) is None


def test_images_in_training_and_evaluation(root):
    train, val = write(root / "train.txt", *ALL[:20]), write(root / "val.txt", *ALL[20:25], f"./img/../{ALL[3]}")
    for split in ("train", "val", "test"):
        line = fails(train, split, val_file=str(val))
        assert f"{val} line 6" in line
        assert str(train) in line
    assert "line 6" in fails(train, test_file=str(val))
    assert "line 1" in fails(train, val_file=str(train))


@pytest.mark.parametrize(
    ("lines", "needle"),
    [
        ([], "names no images"),
        (["# nothing", ""], "names no images"),
        ([*ALL[:3], ALL[1]], "line 4: the same image as"),
        ([*ALL[:3], "img//01.jpg"], "line 4: the same image as"),
        (["img/none.jpg", *ALL], "line 1: there is no"),
        ([*ALL, "img/none.jpg"], "line 41: there is no"),
        ([f"{ALL[0]}\tcat", ALL[1]], "line 2 has no label"),
        ([f"{ALL[0]}\tcat", "\tcat"], "line 2 has no path"),
        ([f"{ALL[0]} 1", f"{ALL[1]} -1"], "line 2: label -1"),
        ([f"{ALL[0]} 1", f"{ALL[1]} 2000000"], "line 2: label 2000000"),
        ([f"{ALL[0]} 1", f"{ALL[1]} 99999999999999999999"], "99999999999999999999 is no label"),
    ],
)
def test_txt_lists_that_are_wrong(root, lines, needle):
    file = write(root / "bad.txt", *lines)
    line = fails(file, val_fraction=0.0)
    assert needle in line
    assert str(file) in line


@pytest.mark.parametrize(
    ("lines", "needle"),
    [
        (["file,label", "a,b"], "no column 'path' in its first line, only 'file', 'label'"),
        (["path;label", "a;b"], "only 'path;label'; columns are separated by commas"),
        (["path,label", f"{ALL[0]}"], "line 2: 1 values for 2 columns"),
        (["path,label", f"{ALL[0]},a", f"{ALL[1]},"], "line 3 has no label"),
        (["path,label", f"{ALL[0]},a", ",b"], "line 3 has no path"),
        (["path,split", f"{ALL[0]},train", f"{ALL[1]},valid"], "line 3: unknown split 'valid': did you mean 'val'"),
        (["path,split", f"{ALL[0]},val"], "no line has the split train"),
        (["path"], "names no images"),
        ([], "no column 'path'"),
        (["path,split", f"{ALL[0]},train", f"{ALL[0]},val"], "the same image as"),
    ],
)
def test_csv_lists_that_are_wrong(root, lines, needle):
    file = write(root / "bad.csv", *lines)
    line = fails(file, "val")
    if "same image" in needle:
        assert "for training" in line
    else:
        assert needle in line
    assert str(file) in line


def test_a_split_column_beside_a_list_of_val(root):
    file = write(root / "all.csv", "path,split", *(f"{n},train" for n in ALL[:20]))
    val = write(root / "val.txt", *ALL[20:])
    assert "leave data.val_file away" in fails(file, val_file=str(val))


def test_val_labels_that_training_does_not_know(root):
    train = write(root / "t.txt", *(f"{n}\t{'ab'[i % 2]}" for i, n in enumerate(ALL[:20])))
    val = write(root / "v.txt", f"{ALL[20]}\ta", f"{ALL[21]}\tc")
    line = fails(train, "val", val_file=str(val))
    assert f"{val} line 2: training has no class 'c'" in line
    numbered = write(root / "n.txt", *(f"{n} {i % 2}" for i, n in enumerate(ALL[:20])))
    assert "training has no class 'a'" in fails(numbered, "val", val_file=str(val))


class Payload:
    def __reduce__(self):
        return (exec, ("raise AssertionError('unpickled')",))


@pytest.mark.parametrize(
    ("values", "needle"),
    [
        (np.array(ALL, dtype=object), "allow_pickle=True"),
        (np.array([Payload()], dtype=object), "pickled objects"),
        (np.array([ALL]), "flat strings"),
        (np.arange(3), "int64"),
        (np.array([], dtype=str), "names no images"),
        (np.array([ALL[0], ""]), "entry 1 has no path"),
        (np.array([ALL[0], ALL[1], ALL[0]]), "entry 2: the same image"),
    ],
)
def test_npy_lists_that_are_wrong(root, values, needle):
    file = root / "bad.npy"
    np.save(file, values, allow_pickle=True)
    line = fails(file)
    assert needle in line
    assert str(file) in line


def test_the_way_to_convert_an_object_array_works(root, monkeypatch):
    monkeypatch.chdir(root)
    np.save(root / "bad.npy", np.array(ALL, dtype=object), allow_pickle=True)
    line = fails(root / "bad.npy")
    exec(line[line.index("a = np.load") :], {"np": np})
    assert len(build(root / "bad.npy", val_fraction=0.0)) == 40


@pytest.mark.parametrize(
    ("raw", "needle"),
    [(b"hello", "not an array"), (b"", "not an array"), (b"\x93NUMPY\x01\x00", "damaged"), ("cut", "damaged")],
)
def test_npy_files_that_are_damaged(root, raw, needle):
    file = root / "bad.npy"
    np.save(file, np.array(ALL))
    file.write_bytes(file.read_bytes()[:-8] if raw == "cut" else raw)
    assert needle in fails(file)


@pytest.mark.parametrize(
    ("labels", "needle"),
    [
        (np.arange(39), "39 labels for the 40 paths"),
        (np.zeros(40), "float64"),
        (np.zeros((40, 1), int), "(40, 1)"),
        (np.full(40, -1), "label -1"),
        (np.array(["a"] * 40), "<U1"),
    ],
)
def test_npy_labels_that_are_wrong(root, labels, needle):
    np.save(root / "images.npy", np.array(ALL))
    np.save(root / "labels.npy", labels)
    assert needle in fails(root / "images.npy", labels_file=str(root / "labels.npy"), val_fraction=0.0)


def test_options_that_are_wrong(root):
    file = write(root / "all.txt", *ALL)
    with pytest.raises(UserError, match=r"data\.file=PATH"):
        build_dataset({"name": "file_list"}, "train")
    assert f"cannot read {root / 'no.txt'}" in fails(root / "no.txt")
    assert ".npy" in fails(write(root / "list.lst", *ALL))
    assert "labels_file is for .npy" in fails(file, labels_file="x.npy")
    assert "val_labels_file" in fails(file, val_labels_file="x.npy")
    assert "val_fraction" in fails(file, val_fraction=-0.1)
    assert "leaves none for val" in fails(file, "val", val_fraction=0.0)
    np.save(root / "images.npy", np.array(ALL))
    assert f"cannot read {root / 'no.npy'}" in fails(root / "images.npy", labels_file=str(root / "no.npy"))


def test_a_long_list_is_not_looked_up_file_by_file(root, monkeypatch):
    from pathlib import Path

    file = write(root / "long.txt", *(f"x/{i}.jpg" for i in range(20_000)))
    looked = []
    monkeypatch.setattr(Path, "is_file", lambda path: looked.append(path) or True)
    data = build(file, val_fraction=0.0)
    assert len(data) == 20_000
    assert len(looked) < 20
    assert {root / "x/0.jpg", root / "x/19999.jpg"} <= set(looked)


def test_numbers_with_leading_zeros_are_names(root):
    file = write(root / "zeros.txt", *(f"{name}\t{i % 3:03d}" for i, name in enumerate(ALL)))
    assert build(file).classes == ("000", "001", "002")
    plain = write(root / "plain.txt", *(f"{name}\t{i % 3 + 1}" for i, name in enumerate(ALL)))
    assert build(plain).classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("kind", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(root, kind):
    text = "\n".join(ALL).encode(kind)
    (root / "wide.txt").write_bytes(text if kind == "utf-16" else b"\xfe\xff" + text)
    assert "wide.txt is UTF-16: save it as UTF-8" in fails(root / "wide.txt")
