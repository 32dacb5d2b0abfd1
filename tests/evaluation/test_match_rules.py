"""What rules of matching choose: loops over cells in exact fractions, planted features, chance, runs, processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_toolkit import commands
from ssl_toolkit.backbones.base import Features
from ssl_toolkit.cli import main
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import EvalData, MatchRulesConfig, Source
from ssl_toolkit.evaluation.match_counts import Crop
from ssl_toolkit.evaluation.match_rules import HEADLINES, MatchRules, background_of, cell_vectors
from ssl_toolkit.evaluation.rule_counts import (
    COUNTS,
    SHARES,
    Cells,
    Pairs,
    cell_classes,
    feature_pairs,
    location_pairs,
    rule_counts,
    shares,
)
from ssl_toolkit.evaluation.view_pairs import PairViews
from ssl_toolkit.processes import leave
from ssl_toolkit.registry import typed
from ssl_toolkit.reporting.report import write_report
from ssl_toolkit.sources import source_of
from tests.evaluation.fakes import ArrayDataset
from tests.evaluation.test_local_matching import (
    BORDERS,
    CROPS,
    IMAGE,
    Constant,
    Waves,
    cell,
    cells,
    centre,
    containing,
    live_data,
    position_features,
    ramps,
    random_crop,
)
from tests.helpers import quick_overrides
from tests.test_cli import error_of, write_photos

VOID = 255
NAMES = ("background", "cat", "dog")
PLAIN = PairViews(scale=[0.2, 1.0], jitter=0.0, gray=0.0, blur=[0.0], solarize=[0.0])
QUICK = MatchRulesConfig(images=70, views=PLAIN)
RULES = ("all", "top gamma", "by ratio", "spread", "mutual", "near", "mutual, near")


def random_masks(count: int, height: int = 120, width: int = 120, void: bool = True) -> NDArray[np.uint8]:
    blocks = np.random.default_rng(count).integers(0, 4 if void else 3, (count, height // 8, width // 8))
    return np.array([0, 1, 2, VOID], np.uint8)[blocks].repeat(8, 1).repeat(8, 2)


def known_cells(crop: Crop, masks: NDArray[np.uint8]) -> Cells:
    return Cells(crop, cell_classes(list(masks), crop))


@pytest.mark.parametrize("pair", [*CROPS, BORDERS])
def test_the_class_is_that_of_the_pixel_which_contains_the_centre(pair: tuple[Crop, Crop]) -> None:
    for crop in pair:
        masks = np.random.default_rng(0).integers(0, 250, (len(crop.box), 120, 130)).astype(np.uint8)
        found = cell_classes(list(masks), crop)
        for image, (position, (row, column)) in itertools.product(range(len(masks)), enumerate(cells(crop))):
            x, y = centre(crop, image, row, column)
            assert found[image, position] == masks[image, math.floor(y), math.floor(x)]


def brute_force(pairs: Pairs, query: Cells, key: Cells, background: int) -> list[dict[str, Any]]:
    """A row for each image, cell by cell in fractions."""
    rows = []
    for image in range(len(pairs.key)):
        row: dict[str, Any] = dict.fromkeys(COUNTS, 0)
        classes = [int(c) for c in key.classes[image] if c != VOID]
        for position, (r, c) in enumerate(cells(query.crop)):
            row["cells"] += 1
            if not pairs.kept[image, position]:
                continue
            mine = int(query.classes[image, position])
            group = "" if mine == VOID else "_background" if mine == background else "_objects"
            row["pairs"] += 1
            row["known"] += mine != VOID
            row["objects"] += group == "_objects"
            row["background"] += group == "_background"
            true = containing(key.crop, image, *centre(query.crop, image, r, c))
            row["inside"] += true is not None
            end = int(pairs.key[image, position])
            for radius, name in itertools.product(range(2), {"", group}):
                near = [
                    true is not None and max(abs(true[0] - a), abs(true[1] - b)) <= radius for a, b in cells(key.crop)
                ]
                row[f"right_{radius}{name}"] += near[end]
                row[f"chance_{radius}{name}"] += Fraction(sum(near), len(near))
            if group == "_objects":
                there = int(key.classes[image, end])
                row["known_ends"] += there != VOID
                row["same_class"] += there == mine
                row["known_views"] += bool(classes)
                row["chance_same_class"] += Fraction(classes.count(mine), max(1, len(classes)))
        rows.append({name: float(value) for name, value in row.items()})
    return rows


@pytest.mark.parametrize("background", [0, -1])
@pytest.mark.parametrize("pair", CROPS)
def test_counts_equal_loops(pair: tuple[Crop, Crop], background: int) -> None:
    masks = random_masks(40)
    masks[3] = VOID
    query, key = (known_cells(crop, masks) for crop in pair)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(key.axes.cells, query.classes.shape, generator=generator)
    pairs = Pairs(keys, torch.rand(query.classes.shape, generator=generator) < 0.6)
    found = rule_counts(pairs, query, key, 3, background)
    expected = brute_force(pairs, query, key, background)
    for name, column in zip(COUNTS, found.T):
        assert np.allclose(column, [row[name] for row in expected], rtol=1e-12), name
    assert sum(row["right_1_objects"] for row in expected) > 10


def distances(x: Tensor, y: Tensor) -> list[list[float]]:
    return [[math.dist(a, b) for b in y.double().tolist()] for a in x.double().tolist()]


def expected_rules(x: Tensor, y: Tensor, query: Crop, key: Crop, image: int, gamma: int) -> dict[str, list[bool]]:
    """Which cells of one image each rule keeps."""
    table = distances(x, y)
    nearest = [row.index(min(row)) for row in table]
    best = [min(row) for row in table]
    ratio = [row[0] / row[1] for row in map(sorted, table)]
    count = len(table)
    blocks: dict[tuple[int, int], list[int]] = {}
    for position in sorted(range(count), key=lambda i: best[i]):
        blocks.setdefault((position // query.width // 2, position % query.width // 2), []).append(position)
    turn = {position: members.index(position) for members in blocks.values() for position in members}
    back = [[row[j] for row in table] for j in range(len(y))]
    mutual = [min(range(count), key=lambda i: back[j][i]) == position for position, j in enumerate(nearest)]
    diagonal = max(
        math.hypot(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (cell(query, image, 0, 0), cell(key, image, 0, 0))
    )
    apart = [
        math.dist(centre(query, image, *a), centre(key, image, *cells(key)[j])) for a, j in zip(cells(query), nearest)
    ]
    near = [far <= 1.5 * diagonal for far in apart]

    def lowest(score: list[Any]) -> list[bool]:
        chosen = sorted(range(count), key=lambda i: score[i])[:gamma]
        return [i in chosen for i in range(count)]

    return {
        "all": [True] * count,
        "top gamma": lowest(best),
        "by ratio": lowest(ratio),
        "spread": lowest([(turn[i], best[i]) for i in range(count)]),
        "mutual": mutual,
        "near": near,
        "mutual, near": [a and b for a, b in zip(mutual, near)],
    }


@pytest.mark.parametrize("pair", CROPS)
def test_rules_equal_loops(pair: tuple[Crop, Crop], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = tuple(torch.randn(40, crop.height * crop.width, 5, generator=generator) for crop in pair)
    both = tuple(known_cells(crop, random_masks(40)) for crop in pair)
    found = feature_pairs(vectors, both, 9, 1.5)  # type: ignore[arg-type]
    for way, (x, y, query, key) in enumerate(((*vectors, *pair), (*vectors[::-1], *pair[::-1]))):
        assert tuple(found[way]) == RULES
        for image in range(12):
            nearest = np.array(distances(x[image], y[image])).argmin(1)
            for rule, kept in expected_rules(x[image], y[image], query, key, image, 9).items():
                assert found[way][rule].kept[image].tolist() == kept, rule
                assert found[way][rule].key[image].tolist() == nearest.tolist()
    monkeypatch.setattr("ssl_toolkit.evaluation.rule_counts.PAIR_NUMBERS", 2000)  # a few images at a time
    again = feature_pairs(vectors, both, 9, 1.5)  # type: ignore[arg-type]
    for way, rule in itertools.product(range(2), RULES):
        assert all(map(torch.equal, found[way][rule], again[way][rule]))


def test_location_pairs_equal_loops() -> None:
    crops = CROPS[0]
    query, key = (known_cells(crop, random_masks(40)) for crop in crops)
    found = location_pairs(query, key, 7)
    for image in range(40):
        apart = [
            [math.dist(centre(crops[0], image, *a), centre(crops[1], image, *b)) for b in cells(crops[1])]
            for a in cells(crops[0])
        ]
        best = [min(row) for row in apart]
        chosen = found["all"].key[image].tolist()
        assert [row[j] for row, j in zip(apart, chosen)] == pytest.approx(best, abs=1e-4)
        kept = found["top gamma"].kept[image]
        assert kept.sum() == 7
        assert max(b for b, k in zip(best, kept) if k) <= min(b for b, k in zip(best, kept) if not k) + 1e-4


def test_shares_and_their_standard_errors() -> None:
    rows = np.zeros((50, len(COUNTS)))
    column = {name: rows[:, i] for i, name in enumerate(COUNTS)}
    column["cells"][:], column["pairs"][:], column["known"][:] = 8, 4, 4
    column["objects"][:20] = 4  # 40 percent, all four of an image alike
    column["right_1_objects"][:10] = 4
    found = shares(rows)
    assert found["pairs"] == 200
    assert found["kept"] == 50
    assert found["kept_error"] == 0
    assert found["on_objects"] == pytest.approx(40)
    assert found["on_objects_error"] == pytest.approx(100 * math.sqrt(0.4 * 0.6 / 49))
    assert found["right_1_objects"] == pytest.approx(50)
    assert found["right_0_background"] is None
    assert found["right_0_background_error"] is None
    assert SHARES["right_1_objects"] == ("right_1_objects", "objects")
    assert SHARES["chance_0_background"] == ("chance_0_background", "background")
    assert SHARES["right_0"] == ("right_0", "pairs")


def table_of(vectors: tuple[Tensor, Tensor], both: tuple[Cells, Cells], gamma: int) -> dict[str, dict[str, Any]]:
    there, _ = feature_pairs(vectors, both, gamma, 1.5)
    return {rule: shares(rule_counts(pairs, *both, 3, 0)) for rule, pairs in there.items()}


def test_planted_places_are_right_wherever_they_lie_inside() -> None:
    query, key = CROPS[1]
    vectors = tuple(position_features(crop).flatten(2).mT for crop in (query, key))
    both = (known_cells(query, random_masks(40)), known_cells(key, random_masks(40)))
    found = table_of(vectors, both, 20)  # type: ignore[arg-type]
    for rule in RULES:
        # On the border of two cells either centre may be the nearer by rounding: one cell away then.
        assert found[rule]["right_1"] == found[rule]["inside"]
        assert found[rule]["right_0"] > 0.9 * found[rule]["inside"]
    assert found["near"]["inside"] > found["all"]["inside"]


def test_planted_classes_are_the_same_and_closest_pairs_can_be_background() -> None:
    crops = random_crop(60, 6, 6, 0), random_crop(60, 6, 6, 1)
    masks = random_masks(60, void=False)
    both = tuple(known_cells(crop, masks) for crop in crops)
    one_hot = tuple(torch.eye(3)[side.classes] for side in both)
    found = table_of(one_hot, both, 15)  # type: ignore[arg-type]
    present = [set(side) for side in both[1].classes.tolist()]
    same, total = 0, 0
    for image, side in enumerate(both[0].classes.tolist()):
        same += sum(c in present[image] for c in side if c)
        total += sum(c > 0 for c in side)
    assert found["all"]["same_class"] == pytest.approx(100 * same / total)

    # Background at one place, objects scattered: the closest pairs are all background where there is enough of it.
    noise = tuple(
        torch.randn(60, 36, 8, generator=torch.Generator().manual_seed(i)) * (side.classes > 0)[:, :, None]
        for i, side in enumerate(both)
    )
    enough = [i for i in range(60) if (both[0].classes[i] == 0).sum() >= 10 and (both[1].classes[i] == 0).any()]
    there, _ = feature_pairs(noise, both, 10, 1.5)  # type: ignore[arg-type]
    counts = rule_counts(there["top gamma"], *both, 3, 0)[enough]  # type: ignore[misc]
    assert len(enough) > 10
    assert counts[:, COUNTS.index("objects")].sum() == 0
    everything = rule_counts(there["all"], *both, 3, 0)[enough]  # type: ignore[misc]
    assert everything[:, COUNTS.index("objects")].sum() > 100


def test_random_features_are_chance_within_the_standard_error() -> None:
    crops = random_crop(600, 6, 6, 0), random_crop(600, 6, 6, 1)
    masks = random_masks(600)
    both = tuple(known_cells(crop, masks) for crop in crops)
    generator = torch.Generator().manual_seed(0)
    vectors = tuple(torch.randn(600, 36, 16, generator=generator) for _ in crops)
    found = table_of(vectors, both, 15)  # type: ignore[arg-type]
    for rule in ("all", "top gamma", "by ratio", "spread", "mutual"):
        row = found[rule]
        assert abs(row["on_objects"] - found["all"]["on_objects"]) < 4 * row["on_objects_error"] + 1e-9
        for name in ("_0", "_1", "_1_objects", "_1_background"):
            assert abs(row[f"right{name}"] - row[f"chance{name}"]) < 4 * row[f"right{name}_error"], (rule, name)
        assert abs(row["same_class"] - row["chance_same_class"]) < 4 * row["same_class_error"]
        assert 0 < row["right_1_error"] < 3
    assert found["top gamma"]["kept"] == pytest.approx(100 * 15 / 36)


def labelled_ramps(count: int, names: tuple[str, ...] | None = NAMES) -> ArrayDataset:
    """`ramps` whose right half is of class 1; class 2 a strip above, void a strip below."""
    dataset = ramps(count)
    masks = np.zeros((count, IMAGE, IMAGE), np.uint8)
    masks[:, :, IMAGE // 2 :], masks[:, :6], masks[:, -4:] = 1, 2, VOID
    if names is not None:
        dataset.masks, dataset.mask_classes = masks, names
    return dataset


def rules_data(dataset: ArrayDataset | None = None, source: dict[str, Any] | None = None, *how: int) -> EvalData:
    data = live_data(Waves(), labelled_ramps(70) if dataset is None else dataset, *how)
    return data if source is None else dataclasses.replace(data, source=dataclasses.replace(data.source, **source))


def test_positions_in_images_are_found_through_flips_and_crops() -> None:
    outcome = MatchRules(QUICK).run(rules_data())
    found = outcome.details["features"]
    assert list(found) == list(RULES)
    assert outcome.details["map"] == [8, 8]
    assert found["all"]["pairs"] == 2 * 70 * 64
    # Bicubic resizing bends the ramps at the borders of a crop.
    assert found["all"]["right_1"] > 0.99 * found["all"]["inside"]
    assert found["near"]["same_class"] > 85 > found["near"]["chance_same_class"] + 15
    # Crops of at least a fifth: half of the image is class 1, and so about half of what lies above and below it.
    assert 45 < found["all"]["on_objects"] < 65
    location = outcome.details["location"]
    assert location["all"]["right_1"] == location["all"]["inside"] == found["all"]["inside"]
    assert outcome.metrics["top_gamma_right"] == found["top gamma"]["right_1"]
    assert set(outcome.metrics) == set(HEADLINES)
    assert "by features, 8,960 cells of 70 pairs" in outcome.notes[0]
    assert outcome.notes[1:] == ["features alone: made up is a backbone alone; a run=FOLDER has a local projector too"]


def test_the_last_row_is_a_random_cell_for_each() -> None:
    outcome = MatchRules(QUICK).run(rules_data())
    row = outcome.details["random"]["all"]
    every = outcome.details["location"]["all"]
    for name in ("0", "1", "0_objects", "1_background"):
        assert row[f"right_{name}"] == every[f"chance_{name}"]
    assert row["same_class"] == every["chance_same_class"]
    assert row["on_objects"] == every["on_objects"]
    assert [(r["space"], r["rule"]) for r in outcome.grid] == [
        ("location", "all"),
        ("location", "top gamma"),
        *(("features", rule) for rule in RULES),
        ("random", "all"),
    ]
    assert not any(key.startswith("chance") for key in outcome.grid[0])


def test_embeddings_stand_for_the_protocol_where_there_are_some() -> None:
    class Shifted(Waves):
        def forward(self, images: Tensor) -> Features:
            maps = super().forward(images).maps.roll(3, 3)
            return Features(maps, maps.mean((2, 3)))

    def undo(maps: Tensor) -> Tensor:
        return cell_vectors(maps.roll(-3, 3))

    plain = MatchRules(QUICK).run(rules_data())
    data = rules_data(source={"backbone": Shifted(), "load_local": lambda: undo})
    outcome = MatchRules(QUICK).run(data)
    assert repr(outcome.details["embeddings"]) == repr(plain.details["features"])
    assert outcome.details["features"]["all"]["right_1"] < plain.details["features"]["all"]["right_1"] - 10
    assert outcome.metrics == plain.metrics
    assert len(outcome.notes) == 1
    alone = MatchRules(dataclasses.replace(QUICK, spaces=["embeddings"])).run(data)
    assert set(alone.details) == {"map", "location", "embeddings", "random"}
    reverse = MatchRules(dataclasses.replace(QUICK, spaces=["embeddings", "features"])).run(data)
    assert reverse.metrics["top_gamma_right"] == outcome.details["features"]["top gamma"]["right_1"]


def test_constant_features_choose_one_pair_each_way_that_is_mutual() -> None:
    found = MatchRules(QUICK).run(live_data(Constant(), labelled_ramps(40))).details["features"]
    assert found["mutual"]["pairs"] == 80
    assert found["all"]["pairs"] == 80 * 64


def test_results_depend_on_neither_batch_size_nor_workers() -> None:
    options = dataclasses.replace(QUICK, images=40)
    results = [MatchRules(options).run(rules_data(None, None, *how)) for how in ((5, 0), (64, 0), (5, 1))]
    assert repr(results[0].details) == repr(results[1].details) == repr(results[2].details)
    other = MatchRules(dataclasses.replace(options, seed=1)).run(rules_data())
    assert repr(other.details) != repr(results[0].details)


def test_options_change_what_is_chosen() -> None:
    base = MatchRules(QUICK).run(rules_data()).details
    few = MatchRules(dataclasses.replace(QUICK, gamma=0.1, images=35)).run(rules_data()).details
    assert few["features"]["top gamma"]["kept"] == few["location"]["top gamma"]["kept"] == 100 * 6 / 64
    assert few["features"]["all"]["pairs"] == base["features"]["all"]["pairs"] / 2
    one = MatchRules(dataclasses.replace(QUICK, gamma=0.001)).run(rules_data()).details
    assert one["features"]["spread"]["kept"] == 100 / 64
    close = MatchRules(dataclasses.replace(QUICK, max_distance=0.4)).run(rules_data()).details
    assert close["features"]["near"]["kept"] < base["features"]["near"]["kept"] - 3
    views = dataclasses.replace(PLAIN, size=48)
    assert MatchRules(dataclasses.replace(QUICK, views=views)).run(rules_data()).details["map"] == [12, 12]


def test_without_a_background_every_class_is_an_object() -> None:
    assert [background_of(names) for names in (NAMES, ("Background",), ("wall", "background"), ())] == [0, 0, -1, -1]
    outcome = MatchRules(QUICK).run(rules_data(labelled_ramps(70, ("wall", "sky", "sea"))))
    for row in outcome.details["features"].values():
        assert row["on_objects"] == 100
        assert row["right_1_background"] is None
    assert "no class is called background" in outcome.notes[-1]


def test_void_alone_leaves_out_what_masks_say() -> None:
    dataset = labelled_ramps(40)
    dataset.masks = np.full((40, IMAGE, IMAGE), VOID, np.uint8)
    outcome = MatchRules(QUICK).run(rules_data(dataset))
    assert set(outcome.metrics) == {"top_gamma_right", "mutual_right"}
    assert outcome.details["features"]["all"]["same_class"] is None
    assert outcome.details["features"]["all"]["right_1"] > 20


def _process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    outcome = MatchRules(QUICK).run(rules_data())
    (Path(folder) / f"{rank}").write_text(repr((outcome.metrics, outcome.details, outcome.grid, outcome.notes)))
    broken = labelled_ramps(70)
    broken.masks[40, 3, 4] = 9  # type: ignore[index]  # read by the second process
    with pytest.raises(UserError, match="the mask of image 40 holds 9: outside the 3 classes"):
        MatchRules(QUICK).run(rules_data(broken))
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = MatchRules(QUICK).run(rules_data())
    torch.set_num_threads(threads)
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = repr((outcome.metrics, outcome.details, outcome.grid, outcome.notes))
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == expected


def test_bad_masks_are_named() -> None:
    dataset = labelled_ramps(40)
    dataset.masks = np.zeros((40, IMAGE, IMAGE - 8), np.uint8)
    with pytest.raises(UserError, match=r"the mask of image 0 is \(40, 32\), its image is \(40, 40\)"):
        MatchRules(QUICK).run(rules_data(dataset))


def test_what_it_cannot_work_with_is_said_before_any_work() -> None:
    data = rules_data(labelled_ramps(1))
    with pytest.raises(UserError, match="match_rules needs 2 test images or more: arrays has 1"):
        MatchRules(QUICK).check(data.source, data.datasets)
    data = rules_data()
    MatchRules(QUICK).check(data.source, data.datasets)
    asked = dataclasses.replace(QUICK, spaces=["features", "embeddings"])
    with pytest.raises(UserError, match=r"match_rules\.spaces: there are no embeddings: made up is a backbone alone"):
        MatchRules(asked).check(data.source, data.datasets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 1}, "images must be 2 or more"),
        ({"gamma": 0.0}, "gamma is a share of the cells"),
        ({"gamma": 20}, "gamma is a share of the cells"),
        ({"max_distance": 0}, "max_distance must be above 0"),
        ({"spaces": []}, "spaces must hold one or both of features, embeddings"),
        ({"spaces": ["features", "features"]}, "each once"),
        ({"spaces": ["embedings"]}, "did you mean 'embeddings'"),
        ({"views": {"flip": 2}}, "flip is a probability"),
        ({"rules": ["all"]}, "unknown key 'match_rules.rules'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(MatchRulesConfig, options, "match_rules")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps of VICRegL beside one of VICReg; reports are not needed."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "write_report", lambda run: run)
        for method in ("vicregl", "vicreg"):
            assert main(["pretrain", *quick_overrides(home, method), f"name={method}", "monitor.knn_every=null"]) == 0
    return home


COMMAND = ["match_rules.images=24", "precision=fp32", "device=cpu"]


@pytest.mark.command
def test_a_run_has_the_embeddings_it_matched_by(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = Path(shutil.copytree(trained / "vicregl", tmp_path / "run"))
    assert main(["eval", "match_rules", f"run={run}", *COMMAND]) == 0
    shown = capsys.readouterr().out
    assert "by embeddings, 3,072 cells of 24 pairs" in " ".join(shown.split())
    lines = [line.split() for line in shown.splitlines()]
    result = json.loads((run / "results" / "match_rules-digit_scenes.json").read_text())
    for space, rule in (("embeddings", "all"), ("features", "all"), ("random", "all")):
        row = result["details"][space][rule]
        numbers = [f"{row[key]:.1f}" for key in ("kept", "on_objects", "inside", "right_0", "right_1")]
        assert [line[2:7] for line in lines if line[:2] == [space, rule]] == [numbers]
    assert any(line[:2] == ["mutual,", "near"] and len(line) == 10 for line in lines)
    assert max(map(len, shown.splitlines())) <= 80 or "results" in shown.splitlines()[-1]

    write_report(run)
    page = (run / "report.html").read_text()
    assert "match_rules on digit_scenes" in page
    assert f"{result['details']['embeddings']['mutual']['right_1']:.4g}" in page
    chance = result["details"]["random"]["all"]["right_0"]
    assert f"{chance:.4g}" in page
    assert str(chance) not in page


def source_of_run(run: Path) -> Source:
    config = OmegaConf.create({"run": str(run), "checkpoint": None, "zoo": None})
    return source_of(config, config)[0]


def test_embeddings_are_those_of_the_stored_projector(trained: Path) -> None:
    run = trained / "vicregl"
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    head = {k.removeprefix("method.local_head."): v for k, v in stored.items() if k.startswith("method.local_head.")}
    maps = torch.randn(2, 128, 3, 4)
    x = maps.permute(0, 2, 3, 1)
    for linear, norm in ((0, 1), (3, 4)):
        x = F.linear(x, head[f"{linear}.weight"], head[f"{linear}.bias"])
        mean, var, scale, shift = (head[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu((x - mean) / (var + 1e-5).sqrt() * scale + shift)
    expected = F.linear(x, head["6.weight"]).flatten(1, 2)
    found = source_of_run(run).local_vectors()(maps)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.detach().abs().max()))


def test_runs_without_embeddings_say_why(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vicreg trained no local projector"):
        source_of_run(trained / "vicreg").local_vectors()
    run = Path(shutil.copytree(trained / "vicregl", tmp_path / "run"))
    weights = load_file(run / "backbone.safetensors")
    with safetensors.safe_open(run / "backbone.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        metadata = file.metadata()
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, run / "backbone.safetensors", metadata)
    with pytest.raises(UserError, match=r"backbone\.safetensors is not that of last\.ckpt; ssl-toolkit export"):
        source_of_run(run).local_vectors()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        source_of_run(run).local_vectors()


@pytest.mark.command
def test_a_run_without_a_local_projector(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "vicreg"
    assert main(["eval", "match_rules", f"run={run}", *COMMAND]) == 0
    assert "features alone" in capsys.readouterr().out
    message = error_of(capsys, "eval", "match_rules", f"run={run}", *COMMAND, "match_rules.spaces=[embeddings]")
    assert message.startswith("error: match_rules.spaces: there are no embeddings: ")


@pytest.mark.command
def test_data_without_masks(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", classes=2, each=8)
    given = ["data=folder", "data.root=photos", f"run={trained / 'vicregl'}"]
    assert "match_rules needs masks: data set folder has none" in error_of(capsys, "eval", "match_rules", *given)
