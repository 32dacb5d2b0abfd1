"""The four methods over one backbone: what they build, what they return, how they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.matching import cell_axes
from ssl_toolkit.methods import METHODS, Method, VICRegL, VICRegLConfig
from ssl_toolkit.methods.base import HeadConfig
from ssl_toolkit.methods.heads import MLP, embed_cells
from ssl_toolkit.methods.local import CellMap
from tests.helpers import TinyBackbone, random_batch

SMALL: dict[str, dict[str, Any]] = {
    "vicreg": {"expander": {"widths": [8, 8]}},
    "vicregl": {"expander": {"widths": [8, 8]}, "projector": {"widths": [5, 5]}},
    "simclr": {"projector": {"widths": [8, 8]}},
    "simclr_l": {"projector": {"widths": [8, 8]}, "local_projector": {"widths": [5, 5]}},
}


def build(name: str, **options: Any) -> Method:
    torch.manual_seed(0)
    return METHODS.build({"name": name, **SMALL[name], **options}, backbone=TinyBackbone())


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_registered_method_trains(name: str) -> None:
    assert METHODS.names() == sorted(SMALL)
    method = build(name)
    batch = random_batch(sizes=(32, 32, 24, 24))
    output = method(batch)
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32
    assert output.pooled.shape == (4, 6)
    assert not any(value.requires_grad for value in output.terms.values())
    output.loss.backward()
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(("name", "alpha"), [("vicregl", 0.75), ("simclr_l", 0.4)])
def test_alpha_weighs_global_against_local(name: str, alpha: float) -> None:
    output = build(name, alpha=alpha)(random_batch())
    globally = sum(v for k, v in output.terms.items() if k.startswith("global_"))
    locally = sum(v for k, v in output.terms.items() if not k.startswith("global_"))
    assert output.loss.item() == pytest.approx((alpha * globally + (1 - alpha) * locally).item(), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0},
        {"local": {"matching": "none"}},
        {"local": {"matching": "location", "location_weight": 0.0}},
    ],
)
@pytest.mark.parametrize(("plain", "local"), [("vicreg", "vicregl"), ("simclr", "simclr_l")])
def test_without_local_terms_a_method_is_its_global_one(plain: str, local: str, options: dict[str, Any]) -> None:
    expected = build(plain)
    method = build(local, **options)
    assert method.state_dict().keys() == expected.state_dict().keys()
    method.load_state_dict(expected.state_dict())
    batch = random_batch()
    assert torch.equal(method(batch).loss, expected(batch).loss)


def test_alpha_zero_builds_no_expander() -> None:
    method = build("vicregl", alpha=0.0)
    assert not any(key.startswith("head.") for key in method.state_dict())
    assert all(not key.startswith("global_") for key in method(random_batch()).terms)


def test_a_flip_changes_location_matches_only_where_the_preset_knows_flips() -> None:
    batch = random_batch()
    unflipped = random_batch()
    for view in unflipped.views:
        view.flip.zero_()
    assert batch.views[0].flip.any() or batch.views[1].flip.any()
    for preset, changes in (("ours", True), ("official", False)):
        # A map of 4 x 4 has 16 cells, below the published 20.
        method = build("vicregl", preset=preset, local={"gamma": [8, 4], "matching": "location"}).eval()
        assert (method(batch).loss.item() != method(unflipped).loss.item()) is changes


def test_terms_can_be_switched_off() -> None:
    terms = build("vicregl", terms="vi", local_terms="i")(random_batch()).terms
    assert set(terms) == {
        "global_invariance",
        "global_variance",
        "location_invariance",
        "feature_invariance",
    }


def test_any_subset_of_terms_trains() -> None:
    for terms in ("v", "c", "vc", "iv", "vic"):
        output = build("vicregl", terms=terms, local_terms=terms[::-1])(random_batch())
        assert len(output.terms) == 3 * len(terms)
        output.loss.backward()


@pytest.mark.parametrize("name", ["vicregl", "simclr_l"])
def test_match_statistics_come_on_request(name: str) -> None:
    output = build(name)(random_batch(sizes=(32, 32, 24)))
    found = output.statistics()
    assert set(found) == {
        *("match_location_overlap", "match_location_pixels", "match_location_duplicates"),
        *("match_feature_pixels", "match_feature_duplicates", "match_agreement", "match_agreement_1"),
    }
    for key in ("match_location_overlap", "match_agreement", "match_agreement_1", "match_feature_duplicates"):
        assert 0 <= found[key].item() <= 1, key
    assert found["match_location_pixels"] < found["match_feature_pixels"]
    assert build("vicreg")(random_batch()).statistics() == {}
    alone = build(name, local={"matching": "feature"})(random_batch()).statistics()
    assert set(alone) == {"match_feature_pixels", "match_feature_duplicates"}


def test_heads_follow_the_backbones_norm() -> None:
    batch_norm = HeadConfig([8, 8, 8]).build(TinyBackbone(norm="batch"))
    layer_norm = HeadConfig([8, 8, 8]).build(TinyBackbone(norm="layer"))
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in batch_norm) == 2
    assert sum(isinstance(m, torch.nn.LayerNorm) for m in layer_norm) == 2
    assert batch_norm[-1].bias is None


def test_cells_are_embedded_in_raster_order() -> None:
    head = MLP(3, (4, 2), "layer")
    maps = torch.randn(2, 3, 4, 5)
    embedded = embed_cells(head, maps)
    assert embedded.shape == (2, 20, 2)
    torch.testing.assert_close(embedded[1, 7], head(maps[1, :, 1, 2]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vicregl", {"alpha": 1.5}, "alpha must lie between 0 and 1, not 1.5"),
        ("vicregl", {"alfa": 0.5}, "unknown key 'method.alfa': did you mean 'alpha'"),
        ("vicregl", {"alpha": "much"}, "method.alpha"),
        ("vicregl", {"preset": "papr"}, "did you mean 'paper'"),
        ("vicregl", {"local": {"matching": "sideways"}}, "unknown local.matching 'sideways'"),
        ("vicreg", {"terms": "xyz"}, "terms must be letters of vic"),
        ("vicreg", {"terms": "i", "invariance": 0.0}, "must not be negative, nor all 0"),
        ("vicregl", {"local_terms": "vv"}, "local_terms must be letters of vic"),
        ("vicregl", {"local": {"max_distance": -0.5}}, "local.max_distance is a distance in cell diagonals"),
        ("vicregl", {"local": {"max_distance": float("nan")}}, "local.max_distance is a distance in cell diagonals"),
        ("vicregl", {"local": {"feature_weight": -1.0}}, "must not be negative"),
        ("vicreg", {"expander": {"widths": []}}, "widths must be positive"),
        ("simclr", {"temperature": 0.0}, "temperature must be at least 0.003, not 0.0"),
        ("simclr_l", {"local_projector": {"widths": [4], "norm": "group"}}, "norm must be"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, **options)


def test_gamma_above_the_cells_is_refused_before_work() -> None:
    method = build("vicregl", local={"gamma": [20, 4]})
    method.check([(7, 7), (7, 7), (3, 3)], num_large=2)
    with pytest.raises(UserError, match="20 pairs asked of a large view whose map has 4x4 = 16 cells"):
        method.check([(4, 4), (4, 4)], num_large=2)
    with pytest.raises(UserError, match="at least two views"):
        method.check([(7, 7)], num_large=1)


def test_advice_on_tiny_maps_and_small_views_with_batchnorm() -> None:
    assert build("vicregl").advice([(7, 7), (7, 7)], 2) == []
    assert "maps of 2x2 cells" in build("simclr_l").advice([(2, 2), (2, 2)], 2)[0]
    assert build("simclr").advice([(2, 2), (2, 2)], 2) == []
    assert "could not make this" in build("vicregl").advice([(7, 7), (7, 7), (3, 3)], 2)[0]


def test_the_python_interface_reads_well() -> None:
    method = VICRegL(VICRegLConfig(alpha=0.9, expander=HeadConfig([16, 16, 16])), TinyBackbone())
    assert method.alpha == 0.9
    assert method.config.local.max_distance == 0.7
    assert (method.config.local.feature_space, method.config.local.mutual) == ("features", True)


@pytest.mark.parametrize("name", ["vicreg", "vicregl"])
@pytest.mark.filterwarnings("ignore:gamma")
def test_the_preset_paper_adds_both_sides(name: str) -> None:
    batch = random_batch()
    ours, paper = (build(name, preset=preset)(batch).terms for preset in ("ours", "paper"))
    for term, factor in (("invariance", 1), ("variance", 2), ("covariance", 2)):
        found = paper[f"global_{term}"].item()
        assert found == pytest.approx(factor * ours[f"global_{term}"].item(), rel=1e-5)


@pytest.mark.parametrize("name", ["vicregl", "simclr_l"])
def test_the_local_loss_is_that_of_the_views_cells(name: str) -> None:
    """Views of 32 x 24 and 24 x 16 pixels, maps of 4 x 3 and 3 x 2 cells, gamma by the size of the view."""
    method = build(name, local={"gamma": [5, 2]}).eval()
    batch = random_batch(sizes=(32, 32, 24, 24))
    batch = batch.map(lambda t: t[..., : t.shape[-1] - 8] if t.ndim == 4 else t)
    features = [method.backbone(view.image) for view in batch.views]
    maps = [
        CellMap(
            method.local_vectors(f.maps),
            cell_axes(view.box, f.maps.shape[2], f.maps.shape[3], view.flip),
            i in (0, 1),
            f.maps.flatten(2).mT,
        )
        for i, (f, view) in enumerate(zip(features, batch.views))
    ]
    output = method(batch)
    for term, value in method.local(maps).terms.items():
        assert output.terms[term].item() == pytest.approx(value.item()), term
    assert torch.equal(output.pooled, features[0].pooled)
    assert not output.pooled.requires_grad


@pytest.mark.parametrize(
    ("name", "options", "space", "only_mutual"),
    [
        ("vicregl", {}, "features", True),
        ("simclr_l", {"preset": "paper"}, "embeddings", False),
        ("vicregl", {"local": {"feature_space": "embeddings"}}, "embeddings", True),
        ("vicregl", {"local": {"mutual": False}}, "features", False),
        ("vicregl", {"local": {"matching": "location"}}, "embeddings", False),
        ("vicregl", {"local": {"matching": "none"}}, "features", False),
        ("vicreg", {}, "features", False),
    ],
)
def test_a_method_says_how_it_finds_matches_by_feature(
    name: str, options: dict[str, Any], space: str, only_mutual: bool
) -> None:
    method = build(name, **options).eval()
    maps = method.backbone(random_batch().views[0].image).maps
    search = method.feature_search
    expected = method.local_vectors(maps) if space == "embeddings" else maps.flatten(2).mT
    assert torch.equal(search.vectors(maps), expected)
    assert (search.space, search.only_mutual) == (space, only_mutual)


def test_gamma_of_just_the_cells_is_allowed_and_goes_by_position_where_the_preset_says_so() -> None:
    build("vicregl", local={"gamma": [16, 9]}).check([(4, 4), (4, 4), (3, 3)], num_large=2)
    build("vicregl", preset="official").check([(7, 7), (7, 7), (3, 3)], num_large=2)
    with pytest.raises(UserError, match="10 pairs asked of a small view whose map has 3x3 = 9 cells"):
        build("vicregl", local={"gamma": [16, 10]}).check([(4, 4), (4, 4), (3, 3)], num_large=2)
    with pytest.raises(UserError, match=r"method\.local\.feature_gamma: 17 pairs"):
        build("vicregl", local={"feature_gamma": [17, 4]}).check([(4, 4), (4, 4)], num_large=2)


def test_the_local_criterion_has_its_own_temperature() -> None:
    batch = random_batch()
    everywhere = {"max_distance": 0.0}
    plain = build("simclr_l", temperature=0.3, local=everywhere)
    assert (plain.criterion.temperature, plain.local.criterion.temperature) == (0.3, 0.3)
    other = build("simclr_l", temperature=0.3, local_temperature=0.1, local=everywhere)
    assert (other.criterion.temperature, other.local.criterion.temperature) == (0.3, 0.1)
    a, b = plain(batch).terms, other(batch).terms
    assert torch.equal(a["global_contrastive"], b["global_contrastive"])
    assert a["location_contrastive"] != b["location_contrastive"]


def test_coefficients_go_to_their_terms() -> None:
    batch = random_batch()
    ones = build("vicregl", invariance=1.0, variance=1.0, covariance=1.0)(batch).terms
    found = build("vicregl", invariance=2.0, variance=3.0, covariance=5.0)(batch).terms
    for name, value in ones.items():
        factor = {"invariance": 2, "variance": 3, "covariance": 5}[name.split("_")[1]]
        assert found[name].item() == pytest.approx(factor * value.item(), rel=1e-5), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("simclr_l", {"local_temperature": 0.001}, "local_temperature must be at least 0.003, not 0.001"),
        ("vicregl", {"local_terms": "i", "terms": "vc", "invariance": 0.0}, "must not be negative, nor all 0"),
    ],
)
def test_more_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, **options)
