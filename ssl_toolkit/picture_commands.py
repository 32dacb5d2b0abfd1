"""``ssl-toolkit picture``: what a backbone sees, drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from ssl_toolkit import evaluation, pictures
from ssl_toolkit.config import compose_config
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import SPLITS, Image, ImageDataset
from ssl_toolkit.data.decode import read_image
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.files import atomic_path
from ssl_toolkit.hardware import pick_device
from ssl_toolkit.pictures import draw
from ssl_toolkit.registry import typed
from ssl_toolkit.sources import source_config, source_of

MANY = 1000
"""Images in a map where no count is given."""

FORMATS = (".png", ".svg", ".pdf")
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
        point: where in the first image, for similarity.
        scale, gamma: of matches.
        perplexity: of the map.
        out: the file; None is ``KIND.png``.
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
    point: list[float] = field(default_factory=lambda: [0.5, 0.5])
    scale: list[float] = field(default_factory=lambda: [0.2, 0.8])
    gamma: int = 10
    perplexity: float = 30.0
    out: str | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be {', '.join(SPLITS)}, not {self.split!r}")
        if (self.count is not None and self.count < 1) or self.gamma < 1:
            raise ValueError("count and gamma must be 1 or more")
        if self.size is not None and self.size < 16:
            raise ValueError(f"size must be 16 pixels or more, not {self.size}")
        if not self.perplexity > 0:
            raise ValueError(f"perplexity must be positive, not {self.perplexity}")
        if self.out is not None and Path(self.out).suffix not in FORMATS:
            raise ValueError(f"out must end in {', '.join(FORMATS)}, not {self.out!r}")


@dataclass(frozen=True)
class Subject:
    """What is drawn: a backbone, images, and how they go together."""

    options: PictureConfig
    source: evaluation.Source
    images: list[Image]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    normalize: Normalize
    size: int
    title: str

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
    )
    return draw.matches_figure(examples, options.gamma, f"{subject.title}: {options.gamma} best matches")


def _pca(subject: Subject) -> Figure:
    seen = subject.see()
    title = f"{subject.title}: principal components of cells"
    return draw.pca_figure(seen.images, pictures.pca_colours(seen.maps), title)


def _similarity(subject: Subject) -> Figure:
    seen = subject.see()
    found, cell = pictures.similarity(seen.maps, 0, subject.options.point)
    return draw.similarity_figure(seen.images, found, cell, f"{subject.title}: similarity to the marked cell")


def _map(subject: Subject) -> Figure:
    options = subject.options
    points = pictures.image_map(subject.see(maps=False).pooled, perplexity=options.perplexity, seed=options.seed)
    title = f"{subject.title}: t-SNE of the pooled features of {len(points)} images"
    return draw.map_figure(points, subject.labels, subject.classes, title)


KINDS: dict[str, Callable[[Subject], Figure]] = {
    "matches": _matches,
    "pca": _pca,
    "similarity": _similarity,
    "map": _map,
}


def picture(kind: str, overrides: Sequence[str], console: Console) -> int:
    """Draw one picture into a file."""
    if kind not in KINDS:
        raise unknown("picture", kind, KINDS)
    config, data = source_config(overrides, lambda every: compose_config("picture", every))
    own = {str(k): v for k, v in config.items() if k not in ("data", "backbone")}
    options = typed(PictureConfig, own, "picture")
    source, _ = source_of(config, data)
    dataset = build_dataset(data, options.split)
    given = any(o.startswith("count=") for o in overrides)
    images, labels = _images(dataset, options, None if kind == "map" and not given else options.count)
    statistics = {key: source.preprocessing.get(key, data[key]) for key in ("mean", "std")}
    normalize = Normalize([float(x) for x in statistics["mean"]], [float(x) for x in statistics["std"]])
    size = options.size or int(data.eval_size)
    classes = dataset.classes
    subject = Subject(options, source, images, labels, classes, normalize, size, f"{source.name} at {size} px")
    out = Path(options.out or f"{kind}.png").expanduser()
    figure = KINDS[kind](subject)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")
    console.print(f"picture  {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _images(dataset: ImageDataset, options: PictureConfig, count: int | None) -> tuple[list[Image], np.ndarray | None]:
    """The images to draw, with their labels where they have some."""
    if options.images:
        return [read_image(Path(name).expanduser(), dataset.in_channels) for name in options.images], None
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: its {options.split} split has no images")
    index = np.linspace(0, len(dataset) - 1, min(count or MANY, len(dataset))).round().astype(int)
    labels = dataset.labels()[index] if dataset.classes is not None else None
    return [dataset.image(int(i)) for i in index], labels
