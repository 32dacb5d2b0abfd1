"""``ssl-toolkit picture``: what a backbone sees, drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from ssl_toolkit import evaluation, pictures, training
from ssl_toolkit.config import compose_config
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import SPLITS, Image, ImageDataset
from ssl_toolkit.data.decode import read_image
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.files import atomic_path, write_text
from ssl_toolkit.hardware import pick_device
from ssl_toolkit.methods import FeatureSearch, Method
from ssl_toolkit.pictures import draw
from ssl_toolkit.registry import typed
from ssl_toolkit.sources import source_config, source_of

MANY = 1000
"""Images in a map where no count is given."""

FORMATS = (".png", ".svg", ".pdf")
PAGE = ".html"
SPACES = ("features", "embeddings")
DPI = 160


@dataclass
class PictureConfig:
    """The keys of ``configs/picture.yaml``.

    Attributes:
        run, checkpoint, zoo: the backbone.
        seed: of an untrained backbone, of the views of matches, of the map.
        images: files to show; empty takes images of the data set.
        split, count: which images of the data set.
        size: side in pixels at which images are shown to the network; None is ``data.eval_size``.
        stage: which map of the pyramid; None is the last map.
        space: ``features`` of the backbone, or ``embeddings`` of a run's local projector; None takes for matches what
            the run's training matched by, and features for everything else.
        point: where in the first image, for similarity.
        scale, gamma: of matches.
        layout: of the map, ``tsne`` or ``umap``.
        perplexity: of t-SNE.
        neighbours: of UMAP.
        out: the file; None is ``KIND.png``. Of similarity it may be a page (``.html``).
    """

    run: str | None = None
    checkpoint: str | None = None
    zoo: str | None = None
    seed: int = 0
    device: str = "auto"
    images: list[str] = field(default_factory=list)
    split: str = "test"
    count: int | None = 6
    size: int | None = None
    stage: int | None = None
    space: str | None = None
    point: list[float] = field(default_factory=lambda: [0.5, 0.5])
    scale: list[float] = field(default_factory=lambda: [0.2, 0.8])
    gamma: int = 10
    layout: str = "tsne"
    perplexity: float = 30.0
    neighbours: int = 15
    out: str | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be {', '.join(SPLITS)}, not {self.split!r}")
        if (self.count is not None and self.count < 1) or self.gamma < 1:
            raise ValueError("count and gamma must be 1 or more")
        if self.size is not None and self.size < 16:
            raise ValueError(f"size must be 16 pixels or more, not {self.size}")
        if not self.perplexity > 0 or self.neighbours < 2:
            raise ValueError("perplexity must be positive, neighbours 2 or more")
        if self.layout not in pictures.LAYOUTS:
            raise ValueError(f"layout must be {' or '.join(pictures.LAYOUTS)}, not {self.layout!r}")
        if self.space not in (None, *SPACES):
            raise ValueError(f"space must be {' or '.join(SPACES)}, not {self.space!r}")
        if self.space == "embeddings" and self.stage is not None:
            raise ValueError("stage goes with space=features: embeddings are those of the last map")

    def file(self, kind: str) -> Path:
        """Where the picture goes.

        Raises:
            UserError: an ending that this kind does not have.
        """
        out = Path(self.out or f"{kind}.png").expanduser()
        endings = (*FORMATS, PAGE) if kind in PAGES else FORMATS
        if out.suffix not in endings:
            raise UserError(f"picture: out must end in {', '.join(endings)} for {kind}, not {self.out!r}")
        return out


@dataclass(frozen=True)
class Subject:
    """What is drawn: a backbone, images, and how they go together.

    Attributes:
        method: whose local projector is looked through; None shows the features of the source's backbone.
        names: one for each image.
    """

    options: PictureConfig
    source: evaluation.Source
    method: Method | None
    images: list[Image]
    names: list[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    normalize: Normalize
    size: int
    title: str

    @property
    def search(self) -> FeatureSearch:
        """In what cells are compared: as the method does where ``space`` leaves it open."""
        if self.method is None:
            return FeatureSearch(pictures.features_themselves, "features", only_mutual=False)
        if self.options.space is None:
            return self.method.feature_search
        return FeatureSearch(self.method.local_vectors, "embeddings", only_mutual=False)

    @property
    def compared(self) -> str:
        """What is compared, for titles."""
        return {"features": "backbone features", "embeddings": "local embeddings"}[self.search.space]

    def see(self, maps: bool = True) -> pictures.Seen:
        """Features of the images."""
        return pictures.see(
            self.source.backbone,
            self.images,
            self.normalize,
            size=self.size,
            device=pick_device(self.options.device),
            stage=self.options.stage,
            maps=maps,
            embed=self.search.vectors,
        )


def _matches(subject: Subject) -> Figure:
    options = subject.options
    examples = pictures.match_examples(
        subject.source.backbone,
        subject.images,
        subject.normalize,
        size=subject.size,
        scale=options.scale,
        gamma=options.gamma,
        seed=options.seed,
        device=pick_device(options.device),
        embed=subject.search.vectors,
        only_mutual=subject.search.only_mutual,
    )
    rule = f"mutual nearest {subject.compared}" if subject.search.only_mutual else subject.compared
    title = f"{subject.title}: {options.gamma} best matches, by {rule} on the right"
    return draw.matches_figure(examples, options.gamma, title)


def _pca(subject: Subject) -> Figure:
    seen = subject.see()
    title = f"{subject.title}: principal components of cells' {subject.compared}"
    return draw.pca_figure(seen.images, pictures.pca_colours(seen.maps), title)


def _similarity(subject: Subject) -> Figure:
    seen = subject.see()
    found, cell = pictures.similarity(seen.maps, 0, subject.options.point)
    return draw.similarity_figure(seen.images, found, cell, f"{_similar(subject)} to the marked cell")


def _similarity_page(subject: Subject) -> str:
    seen = subject.see()
    _, cell = pictures.similarity(seen.maps[:1], 0, subject.options.point)
    return pictures.similarity_page(seen.images, seen.maps, cell, _similar(subject), subject.names)


def _similar(subject: Subject) -> str:
    return f"{subject.title}: similarity of cells' {subject.compared}"


def _map(subject: Subject) -> Figure:
    options = subject.options
    points = pictures.image_map(
        subject.see(maps=False).pooled,
        layout=options.layout,
        perplexity=options.perplexity,
        neighbours=options.neighbours,
        seed=options.seed,
    )
    layout = pictures.LAYOUTS[options.layout]
    title = f"{subject.title}: {layout} of the pooled features of {len(points):,} images"
    return draw.map_figure(points, subject.labels, subject.classes, title)


KINDS: dict[str, Callable[[Subject], Figure]] = {
    "matches": _matches,
    "pca": _pca,
    "similarity": _similarity,
    "map": _map,
}
PAGES: dict[str, Callable[[Subject], str]] = {"similarity": _similarity_page}
"""Kinds that can be a page."""


def picture(kind: str, overrides: Sequence[str], console: Console) -> int:
    """Draw one picture into a file."""
    if kind not in KINDS:
        raise unknown("picture", kind, KINDS)
    config, data = source_config(overrides, lambda every: compose_config("picture", every))
    own = {str(k): v for k, v in config.items() if k not in ("data", "backbone")}
    options = typed(PictureConfig, own, "picture")
    out = options.file(kind)
    if kind == "map":
        pictures.check_layout(options.layout)
    source, _ = source_of(config, data)
    method = _method(kind, options)
    if method is not None:
        source = replace(source, backbone=method.to(pick_device(options.device)).backbone)
    dataset = build_dataset(data, options.split)
    given = any(o.startswith("count=") for o in overrides)
    images, names, labels = _images(dataset, options, None if kind == "map" and not given else options.count)
    statistics = {key: source.preprocessing.get(key, data[key]) for key in ("mean", "std")}
    normalize = Normalize([float(x) for x in statistics["mean"]], [float(x) for x in statistics["std"]])
    size = options.size or int(data.eval_size)
    title = f"{source.name} at {size} px"
    subject = Subject(options, source, method, images, names, labels, dataset.classes, normalize, size, title)
    if out.suffix == PAGE:
        write_text(out, PAGES[kind](subject))
    else:
        figure = KINDS[kind](subject)
        with atomic_path(out) as temporary:
            figure.savefig(temporary, dpi=DPI, facecolor="white")
    console.print(f"picture  {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _method(kind: str, options: PictureConfig) -> Method | None:
    """The method whose local projector is looked through; None where features are to be seen.

    Raises:
        UserError: embeddings are asked for and there is no local projector, or a run's checkpoint cannot be read.
    """
    if options.space == "features" or (options.space is None and kind != "matches"):
        return None
    if kind == "map":
        raise UserError("space=embeddings: a map shows pooled features; leave space out")
    given = Path(options.run or options.checkpoint or "")
    run, name = (given, "last") if options.run else (given.parent.parent, given.stem)
    known = training.checkpoint_path(run, name).is_file() and (options.run is not None or given.suffix == ".ckpt")
    method = training.load_method(run, name) if known else None
    if method is not None and method.embeds_cells:
        return method
    if options.space is None:
        return None
    why = "its method has no local projector" if known else "there is no training checkpoint of a run (run=, .ckpt)"
    raise UserError(f"space=embeddings: {why}; take space=features")


def _images(
    dataset: ImageDataset, options: PictureConfig, count: int | None
) -> tuple[list[Image], list[str], np.ndarray | None]:
    """The images to draw, their names, and their labels where they have some."""
    if options.images:
        paths = [Path(name).expanduser() for name in options.images]
        return [read_image(path, dataset.in_channels) for path in paths], [path.name for path in paths], None
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: its {options.split} split has no images")
    index = np.linspace(0, len(dataset) - 1, min(count or MANY, len(dataset))).round().astype(int)
    names = [f"{options.split} image {i}" for i in index]
    labels = None
    if dataset.classes is not None:
        labels = dataset.labels()[index]
        names = [f"{name}: {dataset.classes[label]}" for name, label in zip(names, labels)]
    return [dataset.image(int(i)) for i in index], names, labels
