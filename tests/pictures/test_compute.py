"""What is drawn: planted directions, closed forms, and matches of features that are positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.errors import UserError
from ssl_toolkit.pictures import Embed, features_themselves, match_examples, pca_colours, see, similarity
from tests.evaluation.fakes import CPU, ColourBackbone, colour_blocks
from tests.helpers import TinyBackbone

PLAIN = Normalize([0.0] * 3, [1.0] * 3)


class PositionBackbone(Backbone):
    """Cells of 4 x 4 pixels whose features are the first two channels of the image: where it is painted with x and y,
    each cell says where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BackboneConfig(name="position-test")
        self.num_features, self.stage_channels = 2, (2,)

    def forward(self, images: Tensor) -> Features:
        maps = F.avg_pool2d(images[:, :2], 4)
        return Features(maps, maps.mean((2, 3)))


def painted(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 2, 0 * x], -1).astype(np.uint8)


def test_components_are_those_of_numpy_up_to_sign_and_stretch() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 4, 3, generator=generator) * torch.tensor([5.0, 3, 2, 1, 0.1]).view(1, 5, 1, 1)
    colours = pca_colours(maps)
    assert colours.shape == (2, 4, 3, 3)
    cells = maps.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    cells -= cells.mean(0)
    _, _, directions = np.linalg.svd(cells, full_matrices=False)
    for i in range(3):
        direction = directions[i] * np.sign(directions[i][np.abs(directions[i]).argmax()])
        component = cells @ direction
        low, high = np.percentile(component, [1, 99])
        np.testing.assert_allclose(
            colours.reshape(-1, 3)[:, i], np.clip((component - low) / (high - low), 0, 1), atol=1e-6
        )


def test_a_colour_means_the_same_in_every_image() -> None:
    one, other = torch.eye(4)[0], torch.eye(4)[2]
    maps = torch.stack([one, other, one]).view(3, 4, 1, 1).expand(3, 4, 2, 2)
    colours = pca_colours(maps)
    np.testing.assert_allclose(colours[0], colours[2])
    assert np.abs(colours[0] - colours[1]).max() == 1
    assert (pca_colours(torch.ones(1, 4, 2, 2)) == 0.5).all()
    assert pca_colours(torch.randn(1, 2, 3, 3))[..., 2].max() == 0.5


def test_similarity_is_the_cosine_to_the_cell_under_the_point() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6, 4, 5, generator=generator)
    found, cell = similarity(maps, 0, [0.61, 0.3])
    assert cell == (1, 3)
    for n in range(3):
        for y in range(4):
            for x in range(5):
                expected = F.cosine_similarity(maps[n, :, y, x], maps[0, :, 1, 3], dim=0)
                assert found[n, y, x] == pytest.approx(float(expected), abs=1e-6)
    assert similarity(maps, 0, [1.0, 1.0])[1] == (3, 4)
    with pytest.raises(UserError, match="two shares from 0 to 1"):
        similarity(maps, 0, [1.2, 0.5])


def test_features_that_are_positions_are_matched_where_they_are() -> None:
    images = [painted(96, 112), painted(80, 80)]
    examples = match_examples(
        PositionBackbone(), images, PLAIN, size=32, scale=(0.3, 0.6), gamma=64, seed=1, device=CPU
    )
    for example in examples:
        assert example.grid == (8, 8)
        location, feature = (example.matches[kind] for kind in ("location", "feature"))
        np.testing.assert_allclose(example.errors("feature"), example.errors("location"), atol=1.5)
        assert (location.index == feature.index).mean() > 0.9
        np.testing.assert_allclose(location.distance, example.errors("location"), atol=1e-3)
        assert location.kept.all()
    assert len({bool(f) for e in examples for f in e.flips}) == 2  # a mirrored view is among them


def test_only_gamma_pairs_are_kept_and_views_depend_on_the_seed() -> None:
    images = [painted(96, 96)]

    def examples(seed: int) -> list:
        return match_examples(
            PositionBackbone(), images, PLAIN, size=32, scale=(0.3, 0.6), gamma=5, seed=seed, device=CPU
        )

    assert examples(0)[0].matches["feature"].kept.sum() == 5
    np.testing.assert_array_equal(examples(0)[0].boxes, examples(0)[0].boxes)
    assert (examples(0)[0].boxes != examples(1)[0].boxes).any()


def test_seeing_leaves_the_backbone_as_it_was() -> None:
    images = [colour_blocks(5).image(i) for i in range(5)]
    backbone = TinyBackbone().train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    seen = see(backbone, images, PLAIN, size=16, device=CPU)
    assert backbone.training
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
    np.testing.assert_array_equal(seen.images, np.stack(images))
    assert seen.maps.shape == (5, 6, 2, 2)
    colours = see(ColourBackbone(), images, PLAIN, size=16, device=CPU)
    np.testing.assert_allclose(colours.pooled, np.stack(images).mean((1, 2)) / 255, atol=1e-5)
    with pytest.raises(UserError, match=r"stage=3: tiny-test has stages 0 to 0"):
        see(TinyBackbone(), images, PLAIN, size=16, device=CPU, stage=3)


def test_what_is_compared_may_be_made_of_the_features() -> None:
    images = [painted(96, 96)]

    def errors(embed: Embed) -> float:
        found = match_examples(
            PositionBackbone(), images, PLAIN, size=32, scale=(0.3, 0.6), gamma=64, seed=1, device=CPU, embed=embed
        )
        return float(found[0].errors("feature").mean())

    class Fooled:
        calls = 0

        def __call__(self, maps: Tensor) -> Tensor:
            self.calls += 1
            vectors = features_themselves(maps)
            return vectors if self.calls == 1 else vectors.flip(1)  # the second view's cells swap their vectors

    assert errors(Fooled()) > errors(features_themselves) + 5
    square = [colour_blocks(3).image(i) for i in range(3)]
    plain = see(ColourBackbone(), square, PLAIN, size=16, device=CPU).maps
    doubled = see(
        ColourBackbone(), square, PLAIN, size=16, device=CPU, embed=lambda maps: 2 * features_themselves(maps)
    )
    torch.testing.assert_close(doubled.maps, 2 * plain)
