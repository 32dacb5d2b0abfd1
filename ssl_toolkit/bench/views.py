"""``bench views``: images a second of our view engines against others', files and worker processes included."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssl_toolkit.bench import view_rivals
from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Suite
from ssl_toolkit.config import choices, compose_config
from ssl_toolkit.data.files import FileDataset
from ssl_toolkit.data.layout import find_images
from ssl_toolkit.data.transforms import Normalize
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.registry import typed
from ssl_toolkit.views import ViewLoader, ViewsConfig, view_loader

CONTENDERS = ("normalized", "torchvision", "torchvision_v2", "lightly", "dali")
OURS = "torch engine"


@dataclass
class ViewsBenchConfig(BenchConfig):
    """Options of ``bench views``.

    Attributes:
        recipes: names of view recipes.
        contenders: what the torch engine is compared with.
        images: files that are made; an epoch of them is one call.
        height, width, quality: of the made JPEGs.
        root: a folder of JPEGs in place of made ones.
        workers: processes of a loader; DALI has as many threads.
        batch_size: images a batch.
    """

    budget: float = 60.0
    recipes: list[str] = field(default_factory=lambda: ["vicreg", "vicregl_multicrop"])
    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS))
    images: int = 400
    height: int = 375
    width: int = 500
    quality: int = 90
    root: str | None = None
    workers: int = 2
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recipes:
            raise ValueError("recipes must name at least one view recipe")
        for name in self.contenders:
            if name not in CONTENDERS:
                raise ValueError(str(unknown("contender", name, CONTENDERS)))
        for key in ("images", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if min(self.height, self.width) < 16 or not 1 <= self.quality <= 100:
            raise ValueError("height and width must be at least 16 and quality between 1 and 100")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, not {self.workers}")


@SUITES.register("views", ViewsBenchConfig)
def views_suite(options: ViewsBenchConfig, device: torch.device) -> Suite:
    """One comparison for each recipe."""
    recipes = [_recipe(name) for name in options.recipes]
    source = options.root or f"{options.images} JPEGs of {options.height}x{options.width}, quality {options.quality}"
    facts = [
        ("images", source),
        ("loaders", f"{options.workers} workers, batches of {options.batch_size}; a call is an epoch"),
        options.turns(),
    ]
    return Suite(facts, _comparisons(options, recipes, device))


def _recipe(name: str) -> ViewsConfig:
    if name not in choices("views"):
        raise unknown("view recipe", name, choices("views"))
    return typed(ViewsConfig, compose_config("pretrain", [f"views={name}"]).views, "views")


def _files(options: ViewsBenchConfig, folder: Path) -> list[Path]:
    if options.root is None:
        return view_rivals.make_files(folder, options.images, options.height, options.width, options.quality)
    root = Path(options.root)
    if not root.is_dir():
        raise UserError(f"root={root} is not a folder: give one that holds JPEGs")
    files = [root / name for name in find_images(root) if name.lower().endswith((".jpg", ".jpeg"))]
    if len(files) < options.batch_size:
        raise UserError(f"root={root} holds {len(files)} JPEGs, fewer than batch_size={options.batch_size}")
    return files[: options.images]


def _comparisons(options: ViewsBenchConfig, recipes: list[ViewsConfig], device: torch.device) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="ssl-toolkit-bench-") as folder:
        files = _files(options, Path(folder))
        for name, recipe in zip(options.recipes, recipes):
            with ExitStack() as open_loaders:
                yield _comparison(name, recipe, files, options, device, open_loaders)


def _comparison(
    name: str, recipe: ViewsConfig, files: list[Path], options: ViewsBenchConfig, device: torch.device, stack: ExitStack
) -> Comparison:
    images = FileDataset(files[0].parent, [str(file.absolute()) for file in files])
    sizes = " + ".join(f"{group.count}x{group.size}" for group in recipe.groups)
    normalize = Normalize(view_rivals.MEAN, view_rivals.STD)
    cpu = torch.device("cpu")
    contenders = [_ours(OURS, "torch", images, recipe, options, cpu, stack)]
    for rival in options.contenders:
        if rival == "normalized":
            contenders.append(
                _ours("  normalized", "torch", images, recipe, options, torch.device("cpu"), stack, normalize)
            )
        elif rival == "dali":
            contenders.append(_dali(images, recipe, options, device, stack))
        else:
            contenders.append(_rival(rival, files, recipe, options))
    return Comparison(
        f"{name}: {sizes} views of {len(files)} images",
        contenders,
        items=len(files) // options.batch_size * options.batch_size,
        notes=[
            "The engines give uint8 views with boxes, which training normalises on its device; the others float32, "
            "normalised; so does the row 'normalized'."
        ],
    )


def _ours(
    name: str,
    engine: str,
    images: FileDataset,
    recipe: ViewsConfig,
    options: ViewsBenchConfig,
    device: torch.device,
    stack: ExitStack,
    normalize: Normalize | None = None,
) -> Contender:
    made: list[ViewLoader] = []

    def call(_: Any) -> None:
        if not made:  # with the warm-up: workers start when they are first asked
            loader = view_loader(
                engine,
                images,
                recipe,
                seed=options.seed,
                batch_size=options.batch_size,
                workers=options.workers,
                device=device,
            )
            stack.callback(loader.close)
            made.append(loader)
        for batch in made[0]:
            if normalize is not None:
                batch.with_images(normalize)

    return Contender(name, call)


def _dali(
    images: FileDataset, recipe: ViewsConfig, options: ViewsBenchConfig, device: torch.device, stack: ExitStack
) -> Contender:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return Contender("dali engine", lambda _: None, absent="not installed (pip install 'ssl-toolkit[dali]')")
    where = device if device.type == "cuda" else torch.device("cpu")
    return _ours(f"dali engine, {where.type}", "dali", images, recipe, options, where, stack)


def _rival(name: str, files: list[Path], recipe: ViewsConfig, options: ViewsBenchConfig) -> Contender:
    if name == "lightly" and view_rivals.lightly_missing():
        return Contender(name, lambda _: None, absent=view_rivals.lightly_missing())
    makers: dict[str, Callable[[ViewsConfig], view_rivals.Transform]] = {
        "torchvision": view_rivals.torchvision_pil,
        "torchvision_v2": view_rivals.torchvision_v2,
        "lightly": view_rivals.lightly_vicregl,
    }
    shown = {"torchvision": "torchvision, PIL", "torchvision_v2": "torchvision v2, uint8", "lightly": "lightly"}
    loader = view_rivals.loader(files, makers[name](recipe), options.batch_size, options.workers)

    def call(_: Any) -> None:
        for _batch in loader:
            pass

    return Contender(shown[name], call)
