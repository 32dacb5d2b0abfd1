"""The list of published checkpoints: what is in it, against the papers' tables and the authors' pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo import MEASURES, chosen, loadable, published, zoo, zoo_path
from ssl_toolkit.zoo.index import OWN_ZOO, percent
from tests.zoo.helpers import own_zoo, zoo_model
from tests.zoo.importing import OFFICIAL_ARCHITECTURES

ENTRIES = list(zoo().values())

TABLE_1 = {  # typed again from the paper: ImageNet, VOC, VOC fine-tuned, Cityscapes
    "moco_v2_resnet50_200ep": (67.5, 35.6, 64.8, 14.3),
    "simclr_resnet50_400ep": (68.2, 45.9, 65.4, 17.9),
    "byol_resnet50_300ep": (72.3, 47.1, 65.7, 22.6),
    "vicreg_resnet50_300ep": (71.5, 47.8, 65.5, 23.5),
    "pixpro_resnet50_400ep": (60.6, 52.8, 67.5, 22.6),
    "densecl_resnet50_200ep": (65.0, 45.3, 66.8, 11.2),
    "detcon_resnet50_1000ep": (66.3, 53.6, 67.4, 16.2),
    "insloc_resnet50_400ep": (45.0, 24.1, 64.4, 7.0),
    "cp2_resnet50_820ep": (53.1, 21.7, 65.2, 8.4),
    "resim_resnet50_400ep": (59.5, 51.9, 67.3, 12.3),
    "vicregl_resnet50_alpha0p9": (71.2, 54.0, 66.6, 25.1),
    "vicregl_resnet50_alpha0p75": (70.4, 55.9, 67.6, 25.2),
}
TABLE_2 = {  # ImageNet, VOC, VOC fine-tuned, ADE20k
    "moco_v3_vit_small": (73.2, 57.1, 75.9, 23.7),
    "dino_vit_small": (77.0, 65.2, 79.5, 30.5),
    "ibot_vit_small": (77.9, 68.2, 79.9, 33.2),
    "vicreg_convnext_small": (76.2, 60.1, 77.8, 28.6),
    "moco_v3_vit_base": (76.7, 64.8, 78.9, 28.7),
    "dino_vit_base": (78.2, 70.1, 82.0, 34.5),
    "ibot_vit_base": (79.5, 73.0, 82.4, 38.3),
    "mae_vit_base": (68.0, 59.6, 82.4, 27.0),
    "vicreg_convnext_base": (77.6, 67.2, 81.1, 32.7),
    "cp2_vit_small_320ep": (62.8, 63.5, 79.6, 25.3),
    "vicregl_convnext_small_alpha0p9": (75.9, 66.7, 80.0, 30.8),
    "vicregl_convnext_small_alpha0p75": (74.6, 67.5, 80.6, 31.2),
    "vicregl_convnext_base_alpha0p9": (77.1, 69.3, 81.2, 33.5),
    "vicregl_convnext_base_alpha0p75": (76.3, 70.4, 82.5, 35.3),
    "vicregl_convnext_xlarge_alpha0p75": (79.4, 78.7, 84.1, 43.2),
}
TABLE_8 = {  # VOC with an FCN head: frozen, fine-tuned
    "moco_v2_resnet50_200ep": (60.5, 66.1),
    "simclr_resnet50_400ep": (62.7, 69.5),
    "byol_resnet50_300ep": (62.0, 69.7),
    "vicreg_resnet50_300ep": (58.9, 65.8),
    "pixpro_resnet50_400ep": (61.7, 70.1),
    "densecl_resnet50_200ep": (63.8, 69.4),
    "detcon_resnet50_1000ep": (66.1, 70.0),
    "insloc_resnet50_400ep": (58.1, 69.2),
    "cp2_resnet50_820ep": (57.9, 66.9),
    "resim_resnet50_400ep": (62.7, 70.3),
    "vicregl_resnet50_alpha0p9": (62.3, 68.5),
    "vicregl_resnet50_alpha0p75": (65.3, 70.4),
}
TABLE_9 = {  # VOC detection: fine-tuned, linear
    "moco_v2_resnet50_200ep": (57.0, 41.3),
    "vicreg_resnet50_300ep": (57.4, 41.9),
    "densecl_resnet50_200ep": (58.7, 43.0),
    "vicregl_resnet50_alpha0p75": (59.5, 45.6),
    "moco_v3_vit_base": (69.8, 54.1),
    "vicreg_vit_base": (71.3, 55.4),
    "dino_vit_base": (74.5, 58.4),
    "vicregl_convnext_base_alpha0p75": (75.4, 59.0),
}
COLUMNS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "table1": (TABLE_1, ("imagenet_linear", "voc_linear", "voc_linear_finetuned", "cityscapes_linear")),
    "table2": (TABLE_2, ("imagenet_linear", "voc_linear", "voc_linear_finetuned", "ade20k_linear")),
    "table8": (TABLE_8, ("voc_fcn", "voc_fcn_finetuned")),
    "table9": (TABLE_9, ("voc_detection_finetuned", "voc_detection")),
}

README = {  # of VICRegL: architecture, alpha, millions of parameters, linear classification and segmentation
    ("resnet50", "0.9"): (23, 71.2, 54.0),
    ("resnet50", "0.75"): (23, 70.4, 55.9),
    ("convnext_small", "0.9"): (50, 75.9, 66.7),
    ("convnext_small", "0.75"): (50, 74.6, 67.5),
    ("convnext_base", "0.9"): (85, 77.1, 69.3),
    ("convnext_base", "0.75"): (85, 76.3, 70.4),
    ("convnext_xlarge", "0.75"): (350, 79.4, 78.7),
}


@pytest.mark.parametrize("table", COLUMNS)
def test_the_papers_tables_are_there_whole(table: str) -> None:
    rows, measures = COLUMNS[table]
    expected = {name: dict(zip(measures, values)) for name, values in rows.items()}
    assert {entry.name: entry.numbers[table] for entry in ENTRIES if table in entry.numbers} == expected


def test_vicregls_seven_models_are_those_of_its_readme() -> None:
    found = [entry for entry in ENTRIES if entry.method == "VICRegL"]
    assert len(found) == len(README) == 7
    for (arch, alpha), (params, classification, segmentation) in README.items():
        entry = published(f"vicregl_{arch}_alpha{alpha.replace('.', 'p')}")
        assert published(f"vicregl/{arch.replace('_', '-')}-a{alpha}") is entry
        assert entry.alpha == float(alpha)
        assert (entry.arch, entry.params) == (OFFICIAL_ARCHITECTURES[arch], params)
        assert entry.number("imagenet_linear") == (classification, "Table 1" if arch == "resnet50" else "Table 2")
        assert entry.number("voc_linear") == (segmentation, "Table 1" if arch == "resnet50" else "Table 2")
        stem = f"https://dl.fbaipublicfiles.com/vicregl/{arch}_alpha{alpha}"
        assert {part: file.url for part, file in entry.files.items()} == {
            "backbone": f"{stem}.pth",
            "full": f"{stem}_fullckpt.pth",
        }
        assert entry.license.startswith("CC-BY-NC")
        assert not loadable(entry)


def test_vicregs_three_models() -> None:
    for arch, accuracy in (("resnet50", 73.2), ("resnet50x2", 75.5), ("resnet200x2", 77.3)):
        entry = published(f"vicreg_{arch}")
        assert entry.number("imagenet_linear") == (accuracy, "authors")
        assert entry.files["backbone"].url == f"https://dl.fbaipublicfiles.com/vicreg/{arch}.pth"
        assert entry.files["full"].url == f"https://dl.fbaipublicfiles.com/vicreg/{arch}_fullckpt.pth"
        assert entry.license == "MIT"


def test_what_can_be_loaded() -> None:
    """All but what is not public, and what is pickled or has Detectron2's names."""
    cannot = {entry.name for entry in ENTRIES if entry.files and loadable(entry)}
    assert cannot == {"byol_resnet50_1000ep", "detcon_resnet50_1000ep", "insloc_resnet50_400ep"}
    for entry in ENTRIES:
        for part, file in entry.files.items():
            assert file.format is None or not loadable(entry, part)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: Any) -> None:
    assert entry.source.startswith("https://")
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", entry.paper)
    assert entry.numbers or entry.files
    for file in entry.files.values():
        assert file.url.startswith("https://")
        assert file.hash or file.format is None or "openmmlab" not in file.url  # their names hold the hash
        in_name = re.search(r"-([0-9a-f]{8})\.pth$", file.url)
        assert in_name is None or file.hash == f"sha256:{in_name[1]}"
    for row in entry.numbers.values():
        assert all(0 < value < 100 and measure in MEASURES for measure, value in row.items())


@pytest.mark.parametrize("arch", sorted({entry.arch for entry in ENTRIES}))
def test_every_architecture_is_one_of_our_backbones(arch: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone({"name": arch, **({"image_size": 224} if "vit" in arch else {})})
    millions = sum(p.numel() for name, p in backbone.named_parameters() if "head." not in name) / 1e6
    published_as = {entry.params for entry in ENTRIES if entry.arch == arch}
    assert len(published_as) == 1
    assert millions == pytest.approx(published_as.pop(), rel=0.05)


def test_no_two_files_share_a_place() -> None:
    places = [zoo_path(entry, part) for entry in ENTRIES for part in entry.files]
    assert len(set(places)) == len(places)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'vicregl_resnet50_alpha0p9'"):
        published("vicregl_resnet50_alpha09")
    with pytest.raises(UserError, match="no zoo checkpoint is named like 'nothing_\\*'"):
        chosen(["nothing_*"])
    with pytest.raises(UserError, match=r"has no public file .*see https://github.com/facebookresearch/vicreg"):
        published("vicreg_resnet50_300ep").file()
    with pytest.raises(UserError, match="has no file 'backbone': there is full"):
        published("moco_v2_resnet50_200ep").file("backbone")


def test_names_aliases_and_patterns_choose() -> None:
    assert chosen([]) == ENTRIES
    found = chosen(["vicregl/resnet50-*", "vicregl_resnet50_alpha0p9", "mae_vit_base"])
    assert [entry.name for entry in found] == [
        "vicregl_resnet50_alpha0p9",
        "vicregl_resnet50_alpha0p75",
        "mae_vit_base",
    ]


def test_the_file_taken_by_default_is_one_that_can_be_read() -> None:
    assert published("resim_resnet50_400ep").file().format == "moco"  # its backbone file has Detectron2's names
    assert published("vicregl_resnet50_alpha0p9").file().url.endswith("alpha0.9.pth")
    assert published("detcon_resnet50_1000ep").file().format is None


def test_published_numbers_keep_their_digits() -> None:
    assert [percent(x) for x in (54.0, 71.2, 68.55)] == ["54.0", "71.2", "68.55"]


def test_entries_of_ones_own_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_zoo(tmp_path, monkeypatch, {"mine": zoo_model("weights.pth", aliases=["my/one"], epochs=7)})
    entry = published("my/one")
    assert (entry.name, entry.method, entry.epochs, entry.data) == ("mine", "Test", 7, "ImageNet-1k")
    assert entry.file().url == str(tmp_path / "own-zoo" / "weights.pth")
    assert len(zoo()) == len(ENTRIES) + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"arch": "resnet50", "params": 23, "colour": 1}, "unknown key '.*mine.yaml.models.mine.colour'"),
        ({"arch": "resnet50"}, "params"),
        ({"arch": "resnet50", "params": "many"}, "params"),
        (zoo_model("x", hash="sha256:zzzz"), "hash must be"),
        (zoo_model("x", hash="md5:" + "0" * 40), "hash must be"),
        (zoo_model("ftp://x/y"), "url must start with"),
        (zoo_model("x", part="head"), "unknown file 'head'"),
        (zoo_model("x", numbers={"table3": {"voc_linear": 1.0}}), "unknown table 'table3'"),
        (zoo_model("x", numbers={"table1": {"voc": 1.0}}), "unknown number 'voc'"),
        (zoo_model("x", aliases=["A b"]), "an alias has"),
        (zoo_model("x", aliases=["vicregl_resnet50_alpha0p9"]), "two entries named 'vicregl_resnet50_alpha0p9'"),
    ],
)
def test_wrong_entries_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], message: str
) -> None:
    own_zoo(tmp_path, monkeypatch, {"mine": model})
    with pytest.raises(UserError, match=message) as error:
        zoo()
    assert "\n" not in str(error.value)


def test_wrong_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_zoo(tmp_path, monkeypatch, {"Mine": zoo_model("x")})
    with pytest.raises(UserError, match="a name has small letters"):
        zoo()
    path.write_text("method: [unclosed")
    with pytest.raises(UserError, match="is not readable YAML"):
        zoo()
    path.write_text("- a list")
    with pytest.raises(UserError, match="is no mapping"):
        zoo()
    monkeypatch.setenv(OWN_ZOO, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"SSL_TOOLKIT_ZOO=.*nowhere is not a folder"):
        zoo()
