"""The pages: well formed, self-contained, escaped, complete."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.report import write_comparison_report, write_report
from tests.reporting.synthetic_runs import make_run

VOID_TAGS = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


def pages(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    run = make_run(tmp_path_factory.mktemp("single") / "vicregl")
    path = write_report(run)
    assert path == run / "report.html"
    return pages(path)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    root = tmp_path_factory.mktemp("comparison")
    paths = [
        make_run(root / "untrained", "none", 23.1, 13.8, trained=False),
        make_run(root / "vicreg", "vicreg", 63.2, 24.4),
        make_run(root / "vicregl", "vicregl", 70.7, 32.8),
    ]
    out = write_comparison_report(paths, root / "pages", "Demo", "One.\n\nTwo & three.")
    assert out == root / "pages" / "report.html"
    return pages(out)


@pytest.fixture(params=["single", "comparison"])
def page(request: pytest.FixtureRequest) -> Reader:
    return request.getfixturevalue(request.param)


def test_nothing_is_fetched(page: Reader) -> None:
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(key, "#").startswith(("#", "data:image/png;base64,"))
        assert "url(" not in attributes.get("style", "")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies[0].startswith("default-src 'none'")


def test_images_decode_and_say_what_they_show(page: Reader) -> None:
    images = page.all("img")
    assert len(images) >= 19
    for image in images:
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        picture.load()
        assert picture.width > 400
        assert len(image["alt"]) > 20


def test_links_lead_to_sections(page: Reader) -> None:
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {link["href"].removeprefix("#") for link in page.all("a")}
    assert links == targets
    assert {"results", "curves", "matches", "masks", "config", "environment"} <= targets


def test_tables_have_headers_and_scroll(page: Reader) -> None:
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))
    boxes = [box for box in page.all("div") if box.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table")) >= 3
    assert all(box["aria-label"] for box in boxes)


def test_the_single_page_holds_the_numbers(single: Reader) -> None:
    for words in ("70.7", "lr 0.1", "top-1", "top-5", "batch_size: 128", "2.15.0+cpu", "digit 9"):
        assert single.says(words)
    assert single.says("last step 695")
    assert sum("Matches by" in image["alt"] for image in single.all("img")) == 8


def test_the_comparison_page_holds_the_numbers(comparison: Reader) -> None:
    for words in (
        "Demo",
        "Two & three.",
        "32.8 +19.0",
        "method.alpha",
        "not set",
        "vicregl: resolved config",
    ):
        assert comparison.says(words)
    masks = [image["alt"] for image in comparison.all("img") if "predicted masks" in image["alt"]]
    assert len(masks) == 2
    assert all(re.search(r"untrained \d+%, vicreg \d+%, vicregl \d+%", alt) for alt in masks)
    assert len(comparison.all("line")) == 2  # legend of curves: the untrained run has none


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    page = pages(write_report(tmp_path))
    for words in ("No results yet", "No training was logged", "No matches were saved", "No predicted masks"):
        assert page.says(words)
    assert page.says("environment was not recorded")
    assert page.all("img") == []
    other = tmp_path / "b"
    other.mkdir()
    (other / "config.yaml").write_text("seed: 0\n")
    both = pages(write_comparison_report([tmp_path, other], tmp_path / "both.html"))
    assert both.says("No results yet")
    assert both.says("No option differs")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    run = make_run(tmp_path / f"{evil}&'\"", trained=False)
    (run / "config.yaml").write_text(f"method: {{name: '<script>{evil}'}}\n")
    (run / "environment.json").write_text(json.dumps({evil: "</td><script>"}))
    result = {
        "protocol": evil,
        "data": evil,
        "metrics": {evil: 1.0},
        "selected": {evil: evil},
        "grid": [{evil: evil}],
    }
    (run / "results" / "evil.json").write_text(json.dumps(result))
    (run / "metrics.csv").write_text(f"step,loss,{evil}\n0,1,2\n5,1,2\n")
    for path in (write_report(run), write_comparison_report([run], tmp_path / "c.html", evil, evil)):
        page = pages(path)
        assert page.all("script") == []
        assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
        assert not any("onerror" in attributes for _, attributes in page.tags)
        assert page.says(evil)


def test_a_loss_that_is_not_a_number_is_said(run: Path) -> None:
    for name in ("examples/matches.npz", "results/segmentation-digit_scenes-examples.npz"):
        (run / name).unlink()
    (run / "metrics.csv").write_text("step,loss\n0,1\n5,nan\n10,inf\n")
    assert pages(write_report(run)).says("the loss is not a number in 2 of 3 rows")


def test_runs_on_other_images_get_their_own_masks(tmp_path: Path) -> None:
    import numpy as np

    paths = [make_run(tmp_path / name, trained=False) for name in "ab"]
    path = paths[1] / "results" / "segmentation-digit_scenes-examples.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "image": 255 - arrays["image"]})
    page = pages(write_comparison_report(paths, tmp_path / "c.html"))
    assert page.says("segmentation on digit_scenes: a")
    assert page.says("segmentation on digit_scenes: b")
    assert sum("predicted masks" in image["alt"] for image in page.all("img")) == 4


def test_a_report_is_replaced_whole(run: Path) -> None:
    for name in ("examples/matches.npz", "metrics.csv", "results/segmentation-digit_scenes-examples.npz"):
        (run / name).unlink()
    (run / "report.html").write_text("old")
    write_report(run)
    assert "old" not in (run / "report.html").read_text()
    (run / "results" / "knn.json").write_text("{")
    with pytest.raises(UserError, match=r"knn\.json"):
        write_report(run)
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
