import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.sets.digit_scenes import DigitScenes, DigitScenesConfig, cache_path, draw
from ssl_toolkit.data.sets.scene_drawing import CHUNK, DIGIT_RANKS, PHOTO_COLUMNS, digits_of, load_sources
from ssl_toolkit.errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(cache))


def scenes(split="train", **options):
    sizes = {"train_size": 400, "val_size": 150, "test_size": 150}
    return build_dataset({"name": "digit_scenes", **sizes, **options}, split)


def test_shapes_labels_and_masks():
    data = scenes()
    assert isinstance(data, DigitScenes)
    assert (len(data), data.name, data.split, data.in_channels) == (400, "digit_scenes", "train", 3)
    assert data.images.shape == (400, 64, 64, 3)
    assert data.images.dtype == np.uint8
    assert data.masks.shape == (400, 64, 64)
    assert data.masks.dtype == np.uint8
    assert data.boxes.shape == (400, 3, 4)
    assert data.boxes.dtype == np.float32
    assert len(data.classes) == 10
    assert len(data.mask_classes) == 11
    assert np.array_equal(data.labels(), data.label_array)
    assert data.label(7) == data.label_array[7]
    assert np.array_equal(data.image(7), data.images[7])
    assert np.array_equal(data.mask(7), data.masks[7])
    true_label = load_sources().labels
    assert np.array_equal(true_label[data.digit_indices[:, 0]], data.label_array)
    present = np.arange(3) < data.box_counts[:, None]
    assert np.array_equal(true_label[data.digit_indices[present]], data.box_labels[present])
    assert (data.box_labels[~present] == -1).all()
    assert (data.digit_indices[~present] == -1).all()
    assert (data.boxes[~present] == 0).all()


def test_objects_are_the_digits_in_the_scene():
    data = scenes()
    assert data.object_classes == data.classes
    for i in range(40):
        boxes, labels, ignore = data.objects(i)
        count = data.box_counts[i]
        assert boxes.tolist() == data.boxes[i].tolist()[:count]
        assert labels.tolist() == data.box_labels[i].tolist()[:count]
        assert (boxes.dtype, labels.dtype, ignore.tolist()) == (np.float32, np.int64, [False] * count)
        assert labels[0] == data.label(i)
        assert set(np.unique(data.mask(i))) - {0} == set(labels + 1)
    boxes[:] = -1
    assert (data.boxes >= 0).all()


def test_every_class_is_in_every_split_and_balanced():
    for split in SPLITS:
        counts = np.bincount(scenes(split).labels(), minlength=10)
        assert counts.min() == counts.max()
    assert set(scenes(train_size=10).labels()) == set(range(10))


def test_masks_hold_exactly_the_pasted_digits_inside_their_boxes():
    data = scenes()
    for i in range(len(data)):
        count = data.box_counts[i]
        assert set(np.unique(data.masks[i])) == {0, *(data.box_labels[i, :count] + 1)}
        for k in range(count):
            x0, y0, x1, y1 = data.boxes[i, k].astype(int)
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 64
        covered = np.zeros((64, 64), dtype=np.uint32)  # bit c: inside some box of digit c
        for k in range(count):
            x0, y0, x1, y1 = data.boxes[i, k].astype(int)
            covered[y0:y1, x0:x1] |= np.uint32(1 << data.box_labels[i, k])
        rows, columns = np.nonzero(data.masks[i])
        digit = data.masks[i][rows, columns].astype(np.uint32) - 1
        assert ((covered[rows, columns] >> digit) & 1).all()


def test_a_lone_digit_fills_its_box_and_is_the_largest_in_a_crowd():
    data = scenes()
    for i in np.flatnonzero(data.box_counts == 1):
        rows, columns = np.nonzero(data.masks[i])
        assert data.boxes[i, 0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    height = data.boxes[:, :, 3] - data.boxes[:, :, 1]
    assert (height[:, 0] > height[:, 1:].max(axis=1)).mean() > 0.99
    assert set(data.box_counts) == {1, 2, 3}


def test_the_dominant_digit_lies_on_top():
    """No other digit hides a part of it: its mask reaches all four sides of its box in every scene."""
    data = scenes()
    for i in np.flatnonzero(data.box_counts > 1):
        x0, y0, x1, y1 = data.boxes[i, 0].astype(int)
        own = data.masks[i, y0:y1, x0:x1] == data.label(i) + 1
        assert all(side.any() for side in (own[0], own[-1], own[:, 0], own[:, -1]))


def test_the_digit_is_visible_against_its_background():
    """On the mask the image differs from what surrounds it: the outline contrasts with the stroke."""
    data = scenes()
    inside = np.array([img[m > 0].astype(float).std() for img, m in zip(data.images, data.masks)])
    outside = np.array([img[m == 0].astype(float).std() for img, m in zip(data.images, data.masks)])
    assert (inside > 1.2 * outside).mean() > 0.9


def test_digits_can_be_read_from_their_pixels():
    """Nearest neighbours among plain digits read lone digits: labels, strokes and boxes agree."""
    sources = load_sources()
    data = scenes("test")
    lone = np.flatnonzero(data.box_counts == 1)
    read = []
    for i in lone:
        x0, y0, x1, y1 = data.boxes[i, 0].astype(int)
        margin = round(0.1 * (y1 - y0) / 1.1)  # the outline around the stroke
        crop = data.images[i, y0 + margin : y1 - margin, x0 + margin : x1 - margin].astype(np.float32)
        small = cv2.resize(crop, (8, 8), interpolation=cv2.INTER_AREA)
        colours = (small - small.mean(axis=(0, 1))).reshape(64, 3)
        read.append(np.linalg.svd(colours, full_matrices=False)[0][:, 0])  # along ink against outline
    tight = []
    for digit in sources.digits:
        rows, columns = np.flatnonzero(digit.max(axis=1) > 0.3), np.flatnonzero(digit.max(axis=0) > 0.3)
        ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        tight.append(cv2.resize(ink, (8, 8), interpolation=cv2.INTER_LINEAR).ravel())
    plain = np.array(tight) - np.mean(tight, axis=1, keepdims=True)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    likeness = np.abs(np.array(read) @ plain.T)  # dark or light ink: the sign is free
    found = sources.labels[likeness.argmax(axis=1)]
    assert (found == data.label_array[lone]).mean() > 0.85


def test_splits_share_no_digit_and_no_photo_column():
    used, columns = {}, {}
    for split in SPLITS:
        data = scenes(split)
        used[split] = set(data.digit_indices[data.digit_indices >= 0].tolist())
        columns[split] = {c for a, b in data.background_columns.tolist() for c in range(a, b)}
        first, last = PHOTO_COLUMNS[split]
        assert min(columns[split]) >= first
        assert max(columns[split]) < last
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not used[a] & used[b]
        assert not columns[a] & columns[b]


def test_digits_are_dealt_once_and_do_not_depend_on_the_seed():
    labels = load_sources().labels
    parts = [digits_of(labels, split) for split in SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert sorted(rank for ranks in DIGIT_RANKS.values() for rank in ranks) == list(range(10))
    train = {i for seed in (0, 1) for i in scenes(seed=seed).digit_indices.ravel().tolist()}
    test = {i for seed in (0, 1) for i in scenes("test", seed=seed).digit_indices.ravel().tolist()}
    assert train & test == {-1}


def test_equal_seeds_give_equal_scenes_in_another_process(tmp_path):
    here = scenes(train_size=60, seed=3)
    code = (
        "from ssl_toolkit.data import build_dataset as b;"
        "print('=' + b({'name': 'digit_scenes', 'train_size': 60, 'seed': 3}, 'train').fingerprint())"
    )
    environment = {**os.environ, "SSL_TOOLKIT_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "=" + here.fingerprint()


def test_seed_and_split_change_the_scenes():
    assert scenes(seed=1).fingerprint() != scenes(seed=0).fingerprint()
    first, other = scenes(train_size=150), scenes("val")
    assert not np.array_equal(first.images[0], other.images[0])


def test_a_shorter_data_set_is_the_beginning_of_a_longer_one():
    long, short = scenes(train_size=CHUNK + 30), scenes(train_size=CHUNK + 10)
    assert np.array_equal(long.images[: CHUNK + 10], short.images)
    assert np.array_equal(long.boxes[: CHUNK + 10], short.boxes)


def test_background_options_do_what_they_say():
    def background(**options):
        data = scenes("val", val_size=60, **options)
        pixels = data.images[data.masks == 0].astype(float) / 255
        return pixels.std(), (pixels.max(axis=1) - pixels.min(axis=1)).mean()

    contrast, colour = zip(
        background(bg_contrast=0.0),
        background(),
        background(bg_contrast=1.0),
        background(bg_contrast=1.0, bg_gray=0.0),
    )
    assert contrast[0] == pytest.approx(0.06, abs=0.005)  # pixel noise alone
    assert contrast[0] < contrast[1] < contrast[2]
    assert colour[3] > 1.5 * colour[2]


@pytest.mark.parametrize("size", [24, 48, 128])
def test_other_sizes(size):
    data = scenes("val", val_size=20, size=size, eval_size=size, eval_resize=size)
    assert data.images.shape == (20, size, size, 3)
    assert data.masks.shape == (20, size, size)
    assert 0.55 < (data.masks == 0).mean() < 0.85


def test_the_cache_is_used_and_named_by_what_matters(monkeypatch):
    first = scenes("val", seed=11)
    monkeypatch.setattr("ssl_toolkit.data.sets.digit_scenes.draw", lambda *_: pytest.fail("drew again"))
    again = scenes("val", seed=11)
    for name in ("images", "masks", "boxes", "label_array", "digit_indices", "background_columns"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    base = cache_path(DigitScenesConfig(), "val")
    for other in (
        DigitScenesConfig(size=65, eval_resize=65),
        DigitScenesConfig(seed=1),
        DigitScenesConfig(bg_contrast=0.5),
        DigitScenesConfig(bg_gray=0.5),
        DigitScenesConfig(val_size=9),
    ):
        assert cache_path(other, "val") != base
    assert cache_path(DigitScenesConfig(), "test").name != base.name
    assert cache_path(DigitScenesConfig(train_size=9, mean=[0.5] * 3), "val") == base


@pytest.mark.parametrize("damage", ["cut", "noise", "flip", "empty", "foreign"])
def test_a_damaged_cache_file_is_drawn_again(damage, capsys):
    options = {"val_size": 20, "seed": 21}
    first = scenes("val", **options)
    path = cache_path(first.config, "val")
    raw = path.read_bytes()
    if damage == "foreign":
        np.savez(path, images=np.zeros(3))
    else:
        flipped = bytearray(raw)
        flipped[len(raw) // 3] ^= 255
        path.write_bytes({"cut": raw[: len(raw) // 2], "noise": b"no", "flip": bytes(flipped), "empty": b""}[damage])
    capsys.readouterr()
    assert scenes("val", **options).fingerprint() == first.fingerprint()
    assert "drawing it again" in capsys.readouterr().out
    assert path.read_bytes()[:4] == raw[:4]
    assert len(path.read_bytes()) == len(raw)
    assert not list(path.parent.glob(".*"))


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(blocked / "below"))
    assert len(scenes("val", val_size=10)) == 10
    assert "SSL_TOOLKIT_CACHE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"size": 8}, "size 8"),
        ({"train_size": 0}, "train_size"),
        ({"seed": -1}, "seed"),
        ({"bg_contrast": 1.5}, "bg_contrast"),
        ({"bg_gray": -0.1}, "bg_gray"),
        ({"mean": [0.5], "std": [0.2]}, "channels"),
        ({"sise": 64}, "did you mean 'size'"),
        ({"size": "large"}, "size"),
    ],
)
def test_bad_options(options, needle):
    with pytest.raises(UserError, match=needle) as caught:
        scenes(**options)
    assert "\n" not in str(caught.value)


def test_noise_has_the_deviation_asked_for():
    options = {"train_size": 20, "bg_contrast": 0.0}
    clean = draw(DigitScenesConfig(**options, noise=0.0), "train").images.astype(float)
    noisy = draw(DigitScenesConfig(**options, noise=0.05), "train")
    background = noisy.masks == 0  # far from black and white, so that nothing is clipped
    difference = (noisy.images.astype(float) - clean)[background] / 255
    assert abs(difference.std() - 0.05) < 0.002
    assert abs(difference.mean()) < 0.002
