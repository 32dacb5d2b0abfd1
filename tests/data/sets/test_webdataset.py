"""Tar shards: index, labels, splits, long names, processes, and what can be wrong with a tar."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import tarfile

import numpy as np
import PIL.Image
import pytest

from ssl_toolkit.config import parse
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.layout import held_out
from ssl_toolkit.data.sets import shards
from ssl_toolkit.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))


def picture(value, form="PNG", size=(6, 4)):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((*size, 3), value % 256, np.uint8)).save(stream, form)
    return stream.getvalue()


def write_tar(path, members, kind=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def samples(start, count, label="cls", prefix=""):
    members = []
    for i in range(start, start + count):
        members.append((f"{prefix}{i:06d}.png", picture(i)))
        if label == "cls":
            members.append((f"{prefix}{i:06d}.cls", str(i % 3).encode()))
        if label == "json":
            members.append((f"{prefix}{i:06d}.json", json.dumps({"label": i % 3, "text": "a cat"}).encode()))
    return members


def shard_tree(folder, shards=3, each=10, label="cls", prefix=""):
    for number in range(shards):
        write_tar(folder / f"train-{number:06d}.tar", samples(number * each, each, label, prefix))
    return folder


def webdataset(where, split="train", **options):
    return build_dataset({"name": "webdataset", "shards": str(where), **options}, split)


def values(data):
    """The number that each image was drawn from."""
    return [int(data.image(i)[0, 0, 0]) for i in range(len(data))]


def fails(needle, *args, **options):
    with pytest.raises(UserError) as caught:
        webdataset(*args, **options)
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("label", ["cls", "json"])
def test_samples_labels_and_held_out_part(tmp_path, label):
    folder = shard_tree(tmp_path / "shards", label=label, prefix="part/")
    train, val, test = (webdataset(folder, split) for split in ("train", "val", "test"))
    out = {int(key[-6:]) for key in held_out([f"part/{i:06d}" for i in range(30)], 0.1)}
    assert values(train) == sorted(set(range(30)) - out)
    assert values(val) == values(test) == sorted(out)
    for data in (train, val, test):
        assert data.classes == ("0", "1", "2")
        assert data.labels().tolist() == [v % 3 for v in values(data)] == [data.label(i) for i in range(len(data))]
        assert data.image(0).shape == (6, 4, 3)
        assert data.encoded(0).tobytes() == picture(values(data)[0])
    assert train.fingerprint() != val.fingerprint()
    assert webdataset(folder, in_channels=1).encoded(0) is None
    assert webdataset(folder, bits=16).encoded(0) is None
    assert webdataset(folder, bits=16).image(0).dtype == np.float32


def test_without_labels(tmp_path):
    folder = shard_tree(tmp_path / "none", label="none")
    other = shard_tree(tmp_path / "json", label="json")
    for data in (webdataset(folder), webdataset(other, label_key=None), webdataset(other, label_key="class")):
        assert data.classes is None
        with pytest.raises(NotImplementedError):
            data.labels()


def test_ways_to_name_shards(tmp_path):
    folder = shard_tree(tmp_path / "s")
    (folder / "notes.txt").write_text("no shard")
    everything = values(webdataset(folder, val_fraction=0.0))
    assert everything == list(range(30))
    for pattern in ("train-*.tar", "train-{000000..000002}.tar", "train-00000{0,1,2}.tar", "train-00000[0-2].tar"):
        assert values(webdataset(folder / pattern, val_fraction=0.0)) == everything
    single = [str(folder / f"train-{n:06d}.tar") for n in (2, 0)]
    assert values(webdataset(", ".join(single), val_fraction=0.0)) == [*range(20, 30), *range(10)]
    assert values(webdataset(single[0], val_fraction=0.0)) == list(range(20, 30))
    assert values(webdataset(f"{single[0]},{folder}/train-00000{{0,1}}.tar", val_fraction=0.0))[:11] == [
        *range(20, 30),
        0,
    ]
    fails("there is no", folder / "train-{000000..000003}.tar")
    fails("there is no", folder / "val-*.tar")
    fails("names a shard twice", f"{single[0]},{folder}")
    fails("names no shard", folder / "train-{2..1}.tar")
    with pytest.raises(UserError, match=r"data\.shards is not set"):
        build_dataset({"name": "webdataset"}, "train")


def test_braces_expand_as_in_a_shell(tmp_path):
    def expand(pattern):
        return shards._braces(pattern)

    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("a-{8..11}") == ["a-8", "a-9", "a-10", "a-11"]
    assert expand("a-{0..10}") == [f"a-{i}" for i in range(11)]
    assert expand("a-{00..10}") == [f"a-{i:02d}" for i in range(11)]
    assert expand("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand("plain") == ["plain"]


def test_the_command_line_takes_the_patterns():
    assert parse("data.shards=p/train-*.tar").value() == "p/train-*.tar"
    assert parse('data.shards="p/train-{000000..000009}.tar"').value() == "p/train-{000000..000009}.tar"


def test_splits_of_their_own(tmp_path):
    folder = shard_tree(tmp_path / "s")
    write_tar(tmp_path / "val.tar", samples(100, 5))
    write_tar(tmp_path / "test.tar", samples(200, 6))
    options = {"val_shards": str(tmp_path / "val.tar")}
    assert values(webdataset(folder, **options)) == list(range(30))
    assert values(webdataset(folder, "val", **options)) == values(webdataset(folder, "test", **options))
    options["test_shards"] = str(tmp_path / "test.tar")
    assert values(webdataset(folder, "val", **options)) == list(range(100, 105))
    assert values(webdataset(folder, "test", **options)) == list(range(200, 206))
    only_test = {"test_shards": options["test_shards"]}
    train, val = (values(webdataset(folder, split, **only_test)) for split in ("train", "val"))
    assert sorted(train + val) == list(range(30))
    assert values(webdataset(folder, "test", **only_test)) == list(range(200, 206))
    fails("data.val_shards: there is no", folder, val_shards=str(tmp_path / "vla.tar"))
    write_tar(tmp_path / "val.tar", [("x.png", picture(1)), ("x.cls", b"3")])
    fails("data.val_shards has the label 3, data.shards only 0 to 2", folder, "val", **options)
    write_tar(tmp_path / "val.tar", [("x.png", picture(1))])
    assert webdataset(folder, "val", **options).classes is None


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_other_members(tmp_path, kind):
    long = "folder/" * 12 + "größe" * 12 if kind != tarfile.USTAR_FORMAT else "f/" * 60 + "name"
    members = [
        ("__index__.json", b"{}"),
        (f"{long}.txt", b"words"),
        (f"{long}.jpg", picture(7, "JPEG")),
        (f"{long}.seg.png", picture(9)),
        (f"{long}.cls", b" 1\n"),
        ("second.PNG", picture(8)),
        ("second.cls", b"0"),
        ("third.cls", b"0"),
    ]
    path = write_tar(tmp_path / "x.tar", members, kind)
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("fourth.png")
        link.type, link.linkname = tarfile.SYMTYPE, "second.PNG"
        tar.addfile(link)
    data = webdataset(path, val_fraction=0.0)
    assert values(data) == [7, 8]
    assert data.labels().tolist() == [1, 0]
    assert long in data.where(0)


def test_names_of_images_as_other_tools_write_them(tmp_path):
    both = write_tar(tmp_path / "b.tar", [("a.webp", picture(1, "WEBP")), ("a.jpg", picture(2, "JPEG"))])
    assert webdataset(both, val_fraction=0.0).where(0).endswith("a.jpg")
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 4, 5), np.uint8))
    only = write_tar(tmp_path / "n.tar", [("a.npy", stream.getvalue()), ("a.txt", b"")])
    many = webdataset(only, val_fraction=0.0, in_channels=5, mean=[0.5] * 5, std=[0.2] * 5)
    assert many.image(0).shape == (3, 4, 5)
    fails("found txt xyz", write_tar(tmp_path / "t.tar", [("a.txt", b"x"), ("a.xyz", b"x")]))


def test_the_index_is_kept_until_a_shard_changes(tmp_path, monkeypatch):
    folder = shard_tree(tmp_path / "s")
    before = values(webdataset(folder))
    read, real = [], shards._index_shard
    monkeypatch.setattr(shards, "_index_shard", lambda path, *rest: (read.append(path.name), real(path, *rest))[1])
    assert values(webdataset(folder)) == before
    assert read == []
    write_tar(folder / "train-000001.tar", samples(10, 9))
    assert len(webdataset(folder, val_fraction=0.0)) == 29
    assert read == ["train-000001.tar"]
    webdataset(folder, label_key="class")
    assert len(read) == 4


def test_the_index_is_of_the_place_and_the_size_of_a_shard_too(tmp_path):
    one, two = (write_tar(tmp_path / f"{n}.tar", samples(n, 5, prefix="abc"[n])) for n in (0, 1))
    os.utime(one, ns=(10**18, 10**18))
    os.utime(two, ns=(10**18, 10**18))
    assert one.stat().st_size == two.stat().st_size
    assert [d.index.names[0][:1] for d in (webdataset(one), webdataset(two))] == [b"a", b"b"]
    write_tar(one, samples(0, 12, prefix="c"))
    os.utime(one, ns=(10**18, 10**18))
    assert len(webdataset(one, val_fraction=0.0)) == 12


def _read(data, index, queue):
    queue.put(data.image(index))


def test_other_processes_open_the_shards_themselves(tmp_path):
    data = webdataset(shard_tree(tmp_path / "s"), val_fraction=0.0)
    data.image(0)
    assert pickle.loads(pickle.dumps(data)).image(12)[0, 0, 0] == 12
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read, args=(data, i, queue)) for i in (5, 25)]
    for worker in workers:
        worker.start()
    assert sorted(int(queue.get(timeout=60)[0, 0, 0]) for _ in workers) == [5, 25]
    for worker in workers:
        worker.join()
    assert values(data) == list(range(30))


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    data = webdataset(shard_tree(tmp_path / "s", shards=5, each=2), val_fraction=0.0)
    order = [0, 9, 4, 2, 6, 8, 1, 9]
    assert [int(data.image(i)[0, 0, 0]) for i in order] == order
    assert len(data._files.get()._open) == 2
    monkeypatch.delattr("os.pread")
    assert values(data) == list(range(10))


@pytest.mark.parametrize("place", ["header", "data", "boundary", "padding", "end"])
def test_a_cut_tar_is_named_with_the_sample(tmp_path, place):
    path = write_tar(tmp_path / "x.tar", samples(0, 4))
    with tarfile.open(path) as tar:
        last = tar.getmember("000003.png")
    cut = {
        "header": last.offset + 100,
        "data": last.offset_data + 20,
        "boundary": last.offset,
        "padding": last.offset_data + last.size,
        "end": last.offset_data + 1024,
    }[place]
    raw = path.read_bytes()
    path.write_bytes(raw[:cut])
    line = fails(str(path), path)
    assert "00000" in line
    assert "cut short" in line or "unexpected end" in line
    if place == "header":
        path.write_bytes(raw[:cut] + bytes(20000))
        fails("damaged or cut short after 000002.cls", path)


def test_damaged_and_compressed_tars(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(0, 4))
    raw = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmember("000002.png").offset
    raw[at + 3] ^= 255
    path.write_bytes(bytes(raw))
    fails("damaged or cut short after 000001.cls", path)
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(bytes(raw)))
    fails("must not be compressed", tmp_path / "y.tar.gz")
    (tmp_path / "z.tar").write_bytes(b"")
    fails("cannot read", tmp_path / "z.tar")
    (tmp_path / "t.tar").write_text("hello" * 1000)
    fails("cannot read", tmp_path / "t.tar")


def test_a_shard_that_changes_under_way(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(0, 4))
    data = webdataset(path, val_fraction=0.0)
    path.write_bytes(path.read_bytes()[: int(data.index.offsets[3]) + 10])
    assert values(webdataset(write_tar(tmp_path / "y.tar", samples(0, 4)), val_fraction=0.0)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="cut short") as caught:
        data.image(3)
    assert str(path) in str(caught.value)
    assert "000003.png" in str(caught.value)
    gone = webdataset(tmp_path / "y.tar", val_fraction=0.0)
    (tmp_path / "y.tar").unlink()
    with pytest.raises(UserError, match="cannot read"):
        gone.image(0)


@pytest.mark.parametrize(
    ("members", "needle"),
    [
        ([("a.png", b"not an image"), ("a.cls", b"0")], None),
        ([("a.png", b""), ("a.cls", b"0")], None),
        ([("a.png", picture(1)[:50]), ("a.cls", b"0")], None),
        ([("a.png", picture(1)), ("a.cls", b"cat")], "a.cls is 'cat'"),
        ([("a.png", picture(1)), ("a.cls", b"-1")], "a.cls is '-1'"),
        ([("a.png", picture(1)), ("a.cls", b"1000000")], "a.cls is '1000000'"),
        ([("a.png", picture(1)), ("a.cls", b"9" * 5000)], "a.cls is '999"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 123456789012345678901}')], "data.label_key=null reads none"),
        ([("a.png", picture(1)), ("a.json", b'{"label": "cat"}')], "'label' in a.json is 'cat'"),
        ([("a.png", picture(1)), ("a.json", b'{"label": true}')], "'label' in a.json is 'True'"),
        ([("a.png", picture(1)), ("a.json", b'{"label": 1.5}')], "'label' in a.json is '1.5'"),
        ([("a.png", picture(1)), ("a.json", b"{")], "a.json is not valid JSON"),
        ([("a.png", picture(1)), ("a.cls", b"0"), ("b.png", picture(2))], "1 of 2 samples"),
    ],
)
def test_bad_samples(tmp_path, members, needle):
    path = write_tar(tmp_path / "x.tar", members)
    if needle is not None:
        fails(needle, path, val_fraction=0.0)
        return
    data = webdataset(path, val_fraction=0.0)
    with pytest.raises(UserError) as caught:
        data.image(0)
    assert f"{path}: a.png" in str(caught.value)


def test_training_on_what_is_evaluated_on_stops_at_once(tmp_path):
    folder = shard_tree(tmp_path / "shards")
    other = folder / "train-000001.tar"
    for option in ("val_shards", "test_shards"):
        for split in ("train", "val", "test"):
            fails(f"is in data.shards and data.{option}", folder, split, **{option: str(other)})


def test_a_cache_that_cannot_be_used_is_said_once(tmp_path, monkeypatch, capsys):
    folder = shard_tree(tmp_path / "shards")
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / ("x" * 300)))
    assert len(webdataset(folder, val_fraction=0.0)) == 30
    assert capsys.readouterr().out.count("is not kept") == 1
