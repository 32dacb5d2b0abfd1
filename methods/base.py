"""What every method is, and the joint-embedding scheme the four methods here share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Backbone
from ssl_toolkit.criteria import Criterion
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods.heads import MLP, embed_cells
from ssl_toolkit.methods.local import CellMap, LocalConfig, LocalCriterion
from ssl_toolkit.registry import Registry
from ssl_toolkit.views.batch import ViewBatch

FEW_CELLS = 9
"""Maps with fewer cells than the smallest of the paper, 3 x 3, get a word of advice."""


class MethodOutput(NamedTuple):
    """What one step gives.

    Attributes:
        loss: float32 scalar with a graph.
        terms: detached, weighted parts of it.
        pooled: ``(B, C)``, the detached representations of the first view, for probes and monitors.
        embedded: ``(B, D)``, detached: what the global head made of them; None without a global head.
        statistics: computes other numbers worth logging, scalars by name, for this batch; costs nothing until called.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    pooled: Tensor
    embedded: Tensor | None = None
    statistics: Callable[[], dict[str, Tensor]] = dict


class Embedded(NamedTuple):
    """What the network makes of a batch; the loss is computed from it.

    Attributes:
        pooled: ``(B, C)``, the detached representations of the first view.
        whole: global embeddings ``(B, D)``, one for each view; empty without a global head.
        cells: local embeddings ``(B, H * W, D)``, one for each view; empty without a local criterion.
        sizes: height and width of each view's map.
        features: ``(B, H * W, C)``, detached, what each of ``cells`` was made of; empty unless cells are matched by it.
    """

    pooled: Tensor
    whole: tuple[Tensor, ...] = ()
    cells: tuple[Tensor, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    features: tuple[Tensor, ...] = ()


class FeatureSearch(NamedTuple):
    """How a method finds its matches by feature.

    Attributes:
        vectors: feature maps ``(B, C, H, W)`` to what is compared by squared distance, ``(B, H * W, D)``.
        space: ``embeddings`` of the local projector, or ``features`` of the backbone.
        only_mutual: whether cells must be each other's nearest.
    """

    vectors: Callable[[Tensor], Tensor]
    space: str
    only_mutual: bool


class Method(nn.Module):
    """A pretraining method: ``method(batch) -> MethodOutput``. The trainer knows nothing else of it.

    It is made of two halves, so that images can pass through the network in parts while the loss sees all of them:
    `embed` treats each image by itself (but for norm statistics), `compare` has no weights.
    """

    backbone: Backbone
    progress: float = 0.0
    """Share of the training that is done; the trainer sets it before every step, for what changes along the way."""

    def embed(self, batch: ViewBatch) -> Embedded:
        """The embeddings of normalised views."""
        raise NotImplementedError

    def compare(self, embedded: Embedded, batch: ViewBatch) -> MethodOutput:
        """The loss of the embeddings of a batch, of which boxes, flips and sizes are read."""
        raise NotImplementedError

    def forward(self, batch: ViewBatch) -> MethodOutput:
        """Loss of one batch of normalised views."""
        return self.compare(self.embed(batch), batch)

    @property
    def embeds_cells(self) -> bool:
        """Whether a local projector makes the `local_vectors`; without one they are the features themselves."""
        return False

    def local_vectors(self, maps: Tensor) -> Tensor:
        """``(B, H * W, D)``: the vectors in which this method would match cells; the features themselves by default."""
        return maps.flatten(2).mT

    @property
    def feature_search(self) -> FeatureSearch:
        """How this method finds matches by feature, or would: the nearest `local_vectors` by default."""
        return FeatureSearch(self.local_vectors, "embeddings" if self.embeds_cells else "features", only_mutual=False)

    def check(self, map_sizes: list[tuple[int, int]], num_large: int) -> None:
        """Refuse views that this method cannot train on, before any work.

        Args:
            map_sizes: height and width of each view's feature map.

        Raises:
            UserError: naming the option and the shapes.
        """

    def advice(self, map_sizes: list[tuple[int, int]], num_large: int) -> list[str]:
        """Sentences on what is allowed but unlikely to work well; printed before training."""
        return []


METHODS: Registry[Method] = Registry("method")


@dataclass
class HeadConfig:
    """Widths of a head's layers, and its norm: ``auto`` follows the backbone (``batch`` or ``layer``)."""

    widths: list[int]
    norm: str = "auto"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive numbers, not {list(self.widths)}")
        if self.norm not in ("auto", "batch", "layer"):
            raise ValueError(f"norm must be auto, batch or layer, not {self.norm!r}")

    def build(self, backbone: Backbone) -> MLP:
        """The head on ``backbone``'s features."""
        norm = backbone.norm if self.norm == "auto" else self.norm
        return MLP(backbone.num_features, self.widths, norm)


class JointEmbedding(Method):
    """Embeddings of all views compared by one criterion, globally and, if asked, cell by cell.

    ``loss = alpha * global + (1 - alpha) * local`` (VICRegL Eq. 4); without a local criterion the loss is the global
    one. Each view goes through the network by itself, so BatchNorm statistics are per view, as in the VICReg code.

    Args:
        backbone: gives ``Features(maps, pooled)``.
        head: of the global embedding (the expander, or SimCLR's projector).
        criterion: for the embeddings and for matched local vectors.
        alpha: weight of the global criterion.
        local: options of the local criterion, resolved; None, ``matching=none`` or weights of 0 build none of it.
        local_head: of the local embedding (the local projector).
        local_criterion: for matched local vectors, where it differs from ``criterion``.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: HeadConfig,
        criterion: Criterion,
        *,
        alpha: float = 1.0,
        local: LocalConfig | None = None,
        local_head: HeadConfig | None = None,
        local_criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= alpha <= 1.0:
            raise UserError(f"method.alpha must lie between 0 and 1, not {alpha}")
        self.backbone = backbone
        self.criterion = criterion
        self.alpha = alpha
        wanted = local is not None and local.kinds() and alpha < 1.0
        self.local = LocalCriterion(local, local_criterion or criterion) if local and wanted else None
        # With alpha 0 the head would get no gradient, which DDP refuses.
        self.head = head.build(backbone) if self.local is None or alpha > 0 else None
        self.local_head = local_head.build(backbone) if self.local is not None and local_head else None

    @property
    def embeds_cells(self) -> bool:
        """Whether there is a local projector."""
        return self.local_head is not None

    def local_vectors(self, maps: Tensor) -> Tensor:
        """The local projector's embedding of every cell, or the features where there is no local projector."""
        return super().local_vectors(maps) if self.local_head is None else embed_cells(self.local_head, maps)

    @property
    def feature_search(self) -> FeatureSearch:
        """That of the local criterion; the nearest local vectors where it matches by location alone."""
        found = super().feature_search
        if self.local is None or "feature" not in dict(self.local.config.kinds()):
            return found
        if self.local.reads_features:
            found = FeatureSearch(super().local_vectors, "features", only_mutual=False)
        return found._replace(only_mutual=bool(self.local.config.mutual))

    def embed(self, batch: ViewBatch) -> Embedded:
        """The heads' embeddings of every view; see the class."""
        features = [self.backbone(view.image) for view in batch.views]
        return Embedded(
            pooled=features[0].pooled.detach(),
            whole=tuple(self.head(f.pooled) for f in features) if self.head is not None else (),
            cells=tuple(self.local_vectors(f.maps) for f in features) if self.local is not None else (),
            sizes=tuple((f.maps.shape[2], f.maps.shape[3]) for f in features),
            features=tuple(f.maps.detach().flatten(2).mT for f in features)
            if self.local is not None and self.local.reads_features
            else (),
        )

    def compare(self, embedded: Embedded, batch: ViewBatch) -> MethodOutput:
        """The global and the local criterion, weighted; see the class."""
        parts: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        statistics: Callable[[], dict[str, Tensor]] = dict
        if embedded.whole:
            whole = self.criterion.views(list(embedded.whole), batch.num_large)
            parts.append((self.alpha if self.local is not None else 1.0) * whole.total)
            terms |= {f"global_{name}": value for name, value in whole.terms.items()}
        if self.local is not None:
            maps = [
                CellMap(vectors, self.local.locate(batch, view, size), view < batch.num_large, features)
                for view, (vectors, size, features) in enumerate(
                    zip_longest(embedded.cells, embedded.sizes, embedded.features)
                )
            ]
            cells, statistics = self.local.evaluate(maps, self.progress)
            parts.append((1.0 - self.alpha) * cells.total)
            terms |= cells.terms
        first = embedded.whole[0].detach() if embedded.whole else None
        return MethodOutput(torch.stack(parts).sum(), terms, embedded.pooled, first, statistics)

    def check(self, map_sizes: list[tuple[int, int]], num_large: int) -> None:
        """Refuse a single view, and a gamma above the cells of a map."""
        if len(map_sizes) < 2:
            raise UserError("views.groups: at least two views are needed, not 1")
        if self.local is None:
            return
        for view, (height, width) in enumerate(map_sizes):
            for kind, key in (("location", "gamma"), ("feature", "feature_gamma")):
                if kind not in dict(self.local.config.kinds()):
                    continue
                large = view < num_large
                # A large view stands first in its pairs and, where there is another, second too.
                positions = ([0] if large else []) + ([1] if not large or num_large > 1 else [])
                asked = [self.local.kept_pairs(kind, large, p, height * width) or 0 for p in positions]
                kept = max(asked)
                if kept > height * width:
                    raise UserError(
                        f"method.local.{key}: {kept} pairs asked of a {'large' if large else 'small'} view whose map "
                        f"has {height}x{width} = {height * width} cells; lower it, give a share below 1, or 0 for all"
                    )

    def advice(self, map_sizes: list[tuple[int, int]], num_large: int) -> list[str]:
        """Tiny maps, and small views with BatchNorm, which the authors of VICRegL could not train."""
        found = []
        height, width = map_sizes[0]
        if self.local is not None and height * width < FEW_CELLS:
            found.append(
                f"maps of {height}x{width} cells leave little to match locally: larger views (views.groups.0.size) or "
                "a finer backbone (backbone.stem=small for ResNets) give more"
            )
        if len(map_sizes) > num_large and self.backbone.norm == "batch":
            found.append(
                "small views with a BatchNorm backbone: VICRegL's authors could not make this combination train well "
                "with VICReg and used it with ConvNeXts only"
            )
        return found
