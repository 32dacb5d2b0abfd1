"""The page of similarities: what it holds gives the cosine similarities of the features, and it needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.pictures import compact, similarity_page


def cosines(vectors: np.ndarray) -> np.ndarray:
    """As the page computes them."""
    lengths = np.sqrt((vectors.astype(float) ** 2).sum(1))
    lengths[lengths == 0] = 1
    return vectors.astype(float) @ vectors.astype(float).T / np.outer(lengths, lengths)


def features(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 96, 5, 6, generator=generator)
    if kind == "offset":  # all cells nearly alike, as after a ReLU
        return noise.abs() + 3
    if kind == "low rank":
        basis = torch.randn(96, 4, generator=generator)
        return torch.einsum("ck,nkhw->nchw", basis, torch.randn(4, 4, 5, 6, generator=generator))
    if kind == "large":
        return noise * 1e6
    return noise


@pytest.mark.parametrize("kind", ["noise", "offset", "low rank", "large"])
def test_compact_vectors_keep_every_cosine(kind: str) -> None:
    maps = features(kind)
    cells = maps.permute(0, 2, 3, 1).reshape(-1, 96).double()
    expected = F.cosine_similarity(cells[:, None], cells[None], dim=2).numpy()
    vectors = compact(maps)
    assert vectors.dtype == np.int8
    assert len(vectors) == 120
    found = cosines(vectors)
    assert np.abs(found - expected).max() < 0.01
    assert np.abs(found - expected).mean() < 0.003
    if kind == "low rank":
        assert vectors.shape[1] == 4


def test_cells_of_nothing_and_single_cells() -> None:
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 1, 0, 1] = 5.0
    vectors = compact(maps)
    assert (vectors[[0, 2, 3]] == 0).all()
    assert np.abs(vectors[1]).max() == 127
    assert compact(torch.zeros(2, 3, 1, 1)).shape == (2, 1)


class Page(HTMLParser):
    """Tags with their attributes, and the script of data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data
        self._inside = False


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (200, "jpeg")])
def test_the_page_holds_images_vectors_and_colours_and_asks_for_nothing(side: int, kind: str) -> None:
    maps = features("noise")
    images = np.random.default_rng(0).integers(0, 255, (4, side, side, 3), dtype=np.uint8)
    names = ["a", "b </script><b>", "c & d", "e"]
    text = similarity_page(images, maps, (2, 3), "a title <&", names)
    page = Page(text)
    data = json.loads(page.data)
    assert (data["images"], data["rows"], data["columns"], data["cell"]) == (4, 5, 6, [0, 2, 3])
    assert data["names"] == names
    vectors = np.frombuffer(base64.b64decode(data["vectors"]), np.int8).reshape(120, data["dimensions"])
    np.testing.assert_array_equal(vectors, compact(maps))
    assert len(base64.b64decode(data["colours"])) == 768
    shown = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [attributes["alt"] for attributes in shown] == names
    assert all(str(attributes["src"]).startswith(f"data:image/{kind};base64,") for attributes in shown)
    assert "<title>a title &lt;&amp;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text).replace("http-equiv", "")
