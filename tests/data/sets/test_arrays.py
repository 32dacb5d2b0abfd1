"""Arrays in .npy, .npz and HDF5: layouts, depths, splits, processes, and what can be wrong."""

import multiprocessing
import pickle

import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.layout import held_out
from ssl_toolkit.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 5, 7, 3)).astype(np.uint8)
LABELS = np.arange(40) % 4
FORMS = ("npy", "npz", "h5")


def put(path, form, **arrays):
    """Each array in a file; returns what the option says, by name."""
    if form == "npy":
        for name, values in arrays.items():
            np.save(path / f"{name}.npy", values)
        return {name: str(path / f"{name}.npy") for name in arrays}
    if form == "npz":
        np.savez_compressed(path / "all.npz", **arrays)
        return {name: f"{path / 'all.npz'}:{name}" for name in arrays}
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "all.h5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(f"group/{name}", data=values, chunks=True, compression="gzip")
    return {name: f"{path / 'all.h5'}:group/{name}" for name in arrays}


def arrays(split="train", **options):
    return build_dataset({"name": "arrays", **options}, split)


def fails(needle, split="train", **options):
    with pytest.raises(UserError) as caught:
        arrays(split, **options)
    assert needle in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_images_labels_and_held_out_part(tmp_path, form):
    options = put(tmp_path, form, images=IMAGES, labels=LABELS)
    train, val, test = (arrays(split, **options) for split in ("train", "val", "test"))
    out = sorted(int(name) for name in held_out([str(i) for i in range(40)], 0.1))
    kept = [i for i in range(40) if i not in out]
    for data, positions in ((train, kept), (val, out), (test, out)):
        assert len(data) == len(positions)
        assert data.classes == ("0", "1", "2", "3")
        assert data.labels().tolist() == LABELS[positions].tolist() == [data.label(i) for i in range(len(data))]
        for i, position in enumerate(positions):
            image = data.image(i)
            assert np.array_equal(image, IMAGES[position])
            assert (image.dtype, image.flags.c_contiguous, image.flags.writeable) == (np.uint8, True, True)
    assert train.encoded(0) is None
    assert train.fingerprint() != val.fingerprint() == test.fingerprint()


def test_splits_of_their_own(tmp_path):
    options = put(tmp_path, "npy", images=IMAGES[:20], labels=LABELS[:20], val_images=IMAGES[20:30],
                  val_labels=LABELS[20:30])  # fmt: skip
    more = {**options, **put(tmp_path, "npy", test_images=IMAGES[30:], test_labels=LABELS[30:])}
    assert np.array_equal([arrays(**options).image(i) for i in range(20)], IMAGES[:20])
    for split, given, wanted in (("val", options, 20), ("test", options, 20), ("val", more, 20), ("test", more, 30)):
        data = arrays(split, **given)
        assert np.array_equal([data.image(i) for i in range(10)], IMAGES[wanted : wanted + 10])
        assert np.array_equal(data.labels(), LABELS[wanted : wanted + 10])
    only_test = {key: more[key] for key in ("images", "labels", "test_images", "test_labels")}
    assert len(arrays(**only_test)) + len(arrays("val", **only_test)) == 20
    assert len(arrays("test", **only_test)) == 10
    fails("data.val_images: there is no file", **{**more, "val_images": str(tmp_path / "vla.npy")})
    fails("data.test_labels: there is no file", **{**more, "test_labels": str(tmp_path / "tset.npy")})
    np.save(tmp_path / "test_labels.npy", np.full(10, 4))
    fails("data.test_labels has the label 4", "test", **more)


def test_layouts(tmp_path):
    planes = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
    paths = put(tmp_path, "npy", planes=planes, gray=IMAGES[..., 0], five=RNG.integers(0, 256, (9, 5, 6, 5), np.uint8))
    assert np.array_equal(
        arrays(images=paths["planes"]).image(0), arrays(**put(tmp_path, "npy", images=IMAGES)).image(0)
    )
    gray = arrays(images=paths["gray"], in_channels=1)
    assert gray.image(0).shape == (5, 7, 1)
    assert gray.classes is None
    with pytest.raises(NotImplementedError):
        gray.labels()
    five = {"images": paths["five"], "in_channels": 5, "mean": [0.5] * 5, "std": [0.2] * 5, "val_fraction": 0.0}
    fails("data.layout=hwc or chw", **five)
    stored = np.load(paths["five"])
    assert np.array_equal(arrays(**five, layout="hwc").image(1), stored[1])
    assert np.array_equal(arrays(**five, layout="chw").image(1), stored[1].transpose(1, 2, 0))
    fails("no axis of 3 channels", images=paths["five"])
    fails("set data.in_channels=1", images=paths["gray"])
    fails("no axis of 3 channels", images=paths["planes"], layout="hwc")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits(tmp_path, form, order):
    deep = RNG.integers(0, 65536, (6, 4, 5, 3)).astype(order)
    options = {**put(tmp_path, form, images=deep), "val_fraction": 0.0}
    image = arrays(**options, bits=16).image(2)
    assert image.dtype == np.float32
    assert np.allclose(image, deep[2] / 257, rtol=1e-7)
    assert np.array_equal(arrays(**options).image(2), deep[2] >> 8)
    shallow = arrays(**put(tmp_path, form, images=IMAGES), bits=16, val_fraction=0.0)
    assert np.array_equal(shallow.image(3), IMAGES[3].astype(np.float32))


def _read(data, index, queue):
    queue.put(data.image(index))


@pytest.mark.parametrize("form", FORMS)
def test_forked_processes_open_the_file_themselves(tmp_path, form):
    data = arrays(**put(tmp_path, form, images=IMAGES), val_fraction=0.0)
    assert np.array_equal(data.image(0), IMAGES[0])  # so that a handle is open here
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read, args=(data, 11, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert np.array_equal(queue.get(timeout=60), IMAGES[11])
    for worker in workers:
        worker.join()
    assert np.array_equal(data.image(1), IMAGES[1])


@pytest.mark.parametrize("form", FORMS)
def test_pickles_hold_no_images(tmp_path, form):
    big = np.zeros((50, 100, 100, 3), np.uint8)
    data = arrays(**put(tmp_path, form, images=big), val_fraction=0.0)
    data.image(0)
    packed = pickle.dumps(data)
    assert len(packed) < 20_000
    assert pickle.loads(packed).image(3).shape == (100, 100, 3)


def test_the_only_array_needs_no_key(tmp_path):
    h5py = pytest.importorskip("h5py")
    np.savez(tmp_path / "one.npz", pictures=IMAGES)
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["pictures"] = IMAGES
    for name in ("one.npz", "one.hdf5"):
        assert len(arrays(images=str(tmp_path / name), val_fraction=0.0)) == 40
    np.savez(tmp_path / "two.npz", images=IMAGES, labels=LABELS)
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS
    for name in ("two.npz", "two.h5"):
        fails("valid: images, labels", images=str(tmp_path / name))
        fails("did you mean 'images'", images=f"{tmp_path / name}:image")


def test_files_that_are_not_right(tmp_path):
    pytest.importorskip("h5py")
    fails("data.images is not set")
    fails("there is no file", images=str(tmp_path / "gone.npy"))
    fails("give FILE.npy", images=str(tmp_path / "images.png"))
    for name in ("text.npy", "text.npz", "text.h5"):
        (tmp_path / name).write_text("hello")
        fails("cannot read", images=str(tmp_path / name))
    whole = put(tmp_path, "npy", images=IMAGES)["images"]
    cut = tmp_path / "cut.npy"
    cut.write_bytes(open(whole, "rb").read()[:2000])  # noqa: PTH123, SIM115
    fails("cannot read", images=str(cut))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    fails("cannot read", images=str(tmp_path / "objects.npy"))


@pytest.mark.parametrize(
    ("values", "needle"),
    [
        (IMAGES / np.float32(255), "values of type float32"),
        (IMAGES.astype(np.int64), "values of type int64"),
        (IMAGES > 3, "values of type bool"),
        (IMAGES[0, 0], "the shape is (N, H, W)"),
        (IMAGES[:0], "the shape is (N, H, W)"),
        (IMAGES[..., None], "the shape is (N, H, W)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, values, needle):
    fails(needle, **put(tmp_path, "npy", images=values))


@pytest.mark.parametrize(
    ("values", "needle"),
    [
        (LABELS[:39], "holds 39 labels"),
        (LABELS - 1, "the label -1"),
        (LABELS.astype(float), "float64"),
        (np.eye(40, dtype=int), "(40, 40)"),
    ],
)
def test_arrays_that_are_no_labels(tmp_path, values, needle):
    fails(needle, **put(tmp_path, "npy", images=IMAGES, labels=values))


def test_a_column_of_labels_will_do(tmp_path):
    data = arrays(**put(tmp_path, "npy", images=IMAGES, labels=LABELS[:, None].astype(np.uint8)), val_fraction=0.0)
    assert data.labels().tolist() == LABELS.tolist()
    assert data.labels().dtype == np.int64


def test_a_damaged_chunk_is_named_when_it_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "noise.h5"
    with h5py.File(path, "w") as file:
        chunks = file.create_dataset("images", data=IMAGES, chunks=(1, 5, 7, 3), compression="gzip", fletcher32=True)
        at, size = chunks.id.get_chunk_info(3).byte_offset, chunks.id.get_chunk_info(3).size
    raw = bytearray(path.read_bytes())
    raw[at + size // 2] ^= 255
    path.write_bytes(bytes(raw))
    data = arrays(images=str(path), val_fraction=0.0)
    assert np.array_equal(data.image(2), IMAGES[2])
    with pytest.raises(UserError, match="cannot read row 3 of") as caught:
        data.image(3)
    assert str(path) in str(caught.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    options = put(tmp_path, "h5", images=IMAGES)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    fails("pip install 'ssl-toolkit[hdf5]'", **options)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"layout": "nchw"}, "unknown layout 'nchw'"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_labels": "x.npy"}, "val_labels is set and val_images is not"),
        ({"val_images": "x.npy", "labels": "y.npy"}, "labels and val_labels"),
        ({"test_images": "x.npy", "test_labels": "y.npy"}, "labels and test_labels"),
        ({"in_channels": 4}, "in_channels"),
        ({"bits": 12}, "bits"),
    ],
)
def test_bad_options(options, needle):
    fails(needle, images="images.npy", **options)


@pytest.mark.parametrize("form", FORMS)
def test_training_on_what_is_evaluated_on_stops_at_once(tmp_path, form):
    options = put(tmp_path, form, images=IMAGES)
    again = options["images"].replace(str(tmp_path), f"{tmp_path}/../{tmp_path.name}")
    for option in ("val_images", "test_images"):
        for split in ("train", "val", "test"):
            fails("evaluation needs other images", split, images=options["images"], **{option: again})
    (tmp_path / "two").mkdir()
    two = put(tmp_path / "two", form, images=IMAGES, other=IMAGES)
    assert len(arrays(images=two["images"], val_images=two["other"])) == 40


def test_an_archive_is_loaded_once_for_all_forked_processes(tmp_path, monkeypatch):
    data = arrays(**put(tmp_path, "npz", images=IMAGES), val_fraction=0.0)
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("loaded again"))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_read, args=(data, 11, queue))
    worker.start()
    assert np.array_equal(queue.get(timeout=60), IMAGES[11])
    worker.join()


def test_ids_are_no_labels(tmp_path):
    fails("the label 10000000000", **put(tmp_path, "npy", images=IMAGES, labels=LABELS + 10**10))


def test_an_empty_dataset_is_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["none"] = h5py.Empty("u1")
    fails("/none in", images=str(tmp_path / "a.h5"))
