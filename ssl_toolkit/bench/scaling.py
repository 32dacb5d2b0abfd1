"""The suite ``scaling``: memory and communication of one process as their number grows, from counted bytes.

Shapes come from the method itself, built without memory; nothing is run and nothing timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.bench.base import SUITES, BenchConfig, Counted, Suite
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.methods.base import JointEmbedding
from ssl_toolkit.registry import typed
from ssl_toolkit.training.parts import resolved
from ssl_toolkit.views import ViewsConfig
from ssl_toolkit.views.batch import View, ViewBatch

OPTIMIZER_NUMBERS = {"sgd": 1, "lars": 1, "adamw": 2, "lamb": 2}
"""Numbers that an optimizer keeps of each parameter."""


@dataclass
class ScalingConfig(BenchConfig):
    """Options of ``bench scaling``.

    Attributes:
        recipe: one of ``configs/experiment``.
        overrides: more keys of ``configs/pretrain.yaml``.
        worlds: numbers of processes.
    """

    recipe: str = "paper/vicregl_resnet50_alpha0p9"
    overrides: list[str] = field(default_factory=list)
    worlds: list[int] = field(default_factory=lambda: [1, 8, 64, 512])


@dataclass(frozen=True)
class Shapes:
    """What the bytes follow from.

    Attributes:
        parameters: of everything that trains.
        saved: bytes that the network's forward pass keeps for the backward pass, for one image with all its views, in
            bf16 autocast.
        copies: bytes that it keeps whatever the number of images: weights in bf16.
        norms: BatchNorm calls of a forward pass.
        channels: of all those calls together.
        views, dim: number of global embeddings of an image, and their dimension.
        slots, local_dim: pairs of groups that the local criterion compares, over all pairs of views, and the dimension
            of their vectors.
        optimizer_numbers: see `OPTIMIZER_NUMBERS`.
    """

    parameters: int
    saved: int
    copies: int
    norms: int
    channels: int
    views: int
    dim: int
    slots: int
    local_dim: int
    optimizer_numbers: int


class Row(NamedTuple):
    """Of one process: bytes it holds, then bytes it receives at every step."""

    processes: int
    images: int
    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    embeddings: int
    reduced: int
    reduced_bf16: int
    gathered: int
    exchanged: int
    norms: int
    norm_calls: int

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.weights + self.copies + self.gradients + self.optimizer + self.activations + self.embeddings


def scaling(shapes: Shapes, batch: int, worlds: Sequence[int]) -> list[Row]:
    """One row for each number of processes.

    Gradients are all-reduced in a ring, which brings in ``2 (W - 1) / W`` times their size. The global criterion
    gathers each view's joined embeddings; the local one sends both sides of a pair to the process that owns its slot,
    and gradients back; both compute in float32. SyncBatchNorm gathers mean, inverse deviation and count of every
    process, and all-reduces two sums on the way back. Scalars are left out.

    Args:
        batch: images a step of all processes together.
    """
    rows = []
    for world in worlds:
        share, own = (world - 1) / world, batch // world
        weights = 4 * shapes.parameters
        view = 4 * batch * shapes.dim
        pairs = 4 * 2 * shapes.slots * own * shapes.local_dim
        statistics = (world - 1) * 4 * (2 * shapes.channels + shapes.norms)
        rows.append(
            Row(
                processes=world,
                images=own,
                weights=weights,
                copies=shapes.copies,
                gradients=weights,
                optimizer=shapes.optimizer_numbers * weights,
                activations=own * shapes.saved,
                embeddings=2 * view,  # one view at a time: as it was gathered, and centred
                reduced=round(2 * share * weights),
                reduced_bf16=round(share * weights),
                gathered=round(share * shapes.views * view),
                exchanged=round(2 * share * pairs),
                norms=round(statistics + 2 * share * 4 * 2 * shapes.channels),
                norm_calls=2 * shapes.norms if world > 1 else 0,
            )
        )
    return rows


def shapes_of(config: DictConfig) -> Shapes:
    """The shapes of a run; no weight is allocated."""
    views = typed(ViewsConfig, config.views, "views")
    channels = 3 if config.backbone.in_channels is None else int(config.backbone.in_channels)
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = METHODS.build(config.method, backbone=create_backbone(config.backbone))
        if not isinstance(method, JointEmbedding):
            raise TypeError(f"{config.method.name} is no joint embedding")
        sizes = views.sizes()
        fewer, norms, maps = _counted(method, _images(2, sizes, channels, views.num_large))
        more, *_ = _counted(method, _images(4, sizes, channels, views.num_large))
    return Shapes(
        parameters=sum(p.numel() for p in method.parameters()),
        saved=(more - fewer) // 2,
        copies=2 * fewer - more,
        norms=len(norms),
        channels=sum(norms),
        views=len(sizes) if method.head is not None else 0,
        dim=method.head.out_features if method.head is not None else 0,
        slots=_slots(method, maps, views.num_large),
        local_dim=method.local_head.out_features if method.local_head is not None else method.backbone.num_features,
        optimizer_numbers=OPTIMIZER_NUMBERS[str(config.optimizer.name)],
    )


def _images(count: int, sizes: Sequence[int], channels: int, num_large: int) -> ViewBatch:
    views = tuple(View(torch.empty(count, channels, s, s), torch.empty(count, 4), torch.ones(count) > 0) for s in sizes)
    return ViewBatch(views, num_large, torch.empty(count, 2), torch.arange(count))


def _counted(method: Method, batch: ViewBatch) -> tuple[int, list[int], list[int]]:
    """Bytes saved by a forward pass, channels of each BatchNorm call, cells of each view's map."""
    own = {id(t) for t in (*method.parameters(), *method.buffers())}
    kept: dict[int, Tensor] = {}
    norms: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            kept[id(base)] = base
        return tensor

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        norms.append(int(module.num_features))  # type: ignore[arg-type]

    batch_norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [module.register_forward_hook(note) for module in batch_norms]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        embedded = method.embed(batch)
    for hook in hooks:
        hook.remove()
    return sum(t.nbytes for t in kept.values()), norms, [height * width for height, width in embedded.sizes]


def _slots(method: JointEmbedding, cells: list[int], num_large: int) -> int:
    """Over both directions of every pair of views, as `ssl_toolkit.methods.local` pairs them."""
    if method.local is None:
        return 0
    total = 0
    for x in range(num_large):
        for y in range(x + 1, len(cells)):
            for kind, _ in method.local.config.kinds():
                for position, view in enumerate((x, y)):
                    kept = method.local.kept_pairs(kind, view < num_large, position, cells[view])
                    total += kept or cells[view]
    return total


def table(rows: Sequence[Row]) -> Table:
    """For a person, in megabytes of 10^6 bytes; a row for each quantity."""
    result = Table(box=box.SIMPLE_HEAD)
    result.add_column("MB of one process")
    for row in rows:
        result.add_column(f"{row.processes}", justify="right")
    names: Mapping[str, str] = {
        "images": "images a step",
        "weights": "weights, float32",
        "copies": "weights in bf16, kept for the backward pass",
        "gradients": "gradients, float32",
        "optimizer": "optimizer's state",
        "activations": "activations kept for it",
        "embeddings": "joined embeddings of a view",
        "held": "held, together",
        "reduced": "received: gradients, float32",
        "reduced_bf16": "received: gradients, if sent in bf16",
        "gathered": "received: global embeddings",
        "exchanged": "received: local vectors and gradients",
        "norms": "received: SyncBatchNorm",
        "norm_calls": "SyncBatchNorm's collectives",
    }
    for key, name in names.items():
        plain = key in ("images", "norm_calls")
        values = [getattr(row, key) for row in rows]
        result.add_row(name, *(f"{v:,}" if plain else f"{v / 1e6:,.1f}" for v in values))
    return result


@SUITES.register("scaling", ScalingConfig)
def scaling_suite(options: ScalingConfig, device: torch.device) -> Suite:
    """Counted for one recipe; the same on every machine."""
    config = resolved(compose_config("pretrain", [f"experiment={options.recipe}", *options.overrides]))
    batch = int(config.trainer.batch_size)
    for world in options.worlds:
        if world < 1 or batch % world:
            raise UserError(f"bench.worlds: trainer.batch_size={batch} does not divide by {world}")
    facts = [
        ("recipe", f"{options.recipe}, {batch} images a step"),
        ("method", f"{config.method.name}, {config.backbone.name}, {config.optimizer.name}"),
    ]

    def counted() -> Counted:
        shapes = shapes_of(config)
        rows = scaling(shapes, batch, options.worlds)
        kept = {"title": "scaling", "shapes": vars(shapes), "rows": [row._asdict() for row in rows]}
        return Counted(table(rows), kept, ["Received at every step; an all-reduce counts as the ring it is made of."])

    return Suite(facts, (make() for make in (counted,)))
