"""``bench criterion``: our losses against a textbook implementation and lightly's, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ssl_toolkit.bench import lightly_losses, textbook
from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Counted, Outcome, Suite
from ssl_toolkit.bench.inputs import random_boxes
from ssl_toolkit.bench.ranks import RanksConfig, ranks_case
from ssl_toolkit.criteria import ContrastiveCriterion, VICRegCriterion
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.matching import CellAxes, cell_axes
from ssl_toolkit.methods.local import CellMap, LocalConfig, LocalCriterion, resolve

NT_XENT, RANKS = "nt_xent", "ranks"
PARTS = ("global", "local")
CONTENDERS = ("ours", "textbook", "lightly")
TEMPERATURE = 0.1


@dataclass
class CaseConfig:
    """Sizes of a VICRegL case.

    Attributes:
        batch: images N.
        dim: of the global embeddings.
        local_dim: of the local vectors.
        large, small: number of large and of small views.
        large_map, small_map: height and width of their feature maps.
        gammas: matches kept from the first view of a pair and from the second, for location and for features alike.
    """

    batch: int = 256
    dim: int = 8192
    local_dim: int = 512
    large: int = 2
    small: int = 0
    large_map: list[int] = field(default_factory=lambda: [7, 7])
    small_map: list[int] = field(default_factory=lambda: [3, 3])
    gammas: list[int] = field(default_factory=lambda: [20, 20])

    def __post_init__(self) -> None:
        for key in ("batch", "dim", "local_dim", "large"):
            least = 2 if key == "batch" else 1
            if getattr(self, key) < least:
                raise ValueError(f"{key} of a case must be at least {least}, not {getattr(self, key)}")
        if self.small < 0 or self.large + self.small < 2:
            raise ValueError(f"a case needs two views, not {self.large} large and {self.small} small")
        for key in ("large_map", "small_map", "gammas"):
            value = getattr(self, key)
            if len(value) != 2 or min(value) < 1:
                raise ValueError(f"{key} of a case must be two positive numbers, not {list(value)}")
        # lightly keeps fewer where there are fewer; ours would have to warn.
        smallest = min(self.cells())
        if self.gammas[0] > self.cells()[0] or self.gammas[1] > smallest:
            raise ValueError(f"gammas {list(self.gammas)} of a case are above the cells of its maps, {self.cells()}")

    def map_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each view's map."""
        large, small = (self.large_map[0], self.large_map[1]), (self.small_map[0], self.small_map[1])
        return [large] * self.large + [small] * self.small

    def cells(self) -> list[int]:
        """Cells of each view's map."""
        return [h * w for h, w in self.map_sizes()]

    def views(self) -> str:
        """``"2+6 views"``."""
        return f"{self.large}+{self.small} views" if self.small else f"{self.large} views"


def _sizes() -> dict[str, CaseConfig]:
    return {
        "A": CaseConfig(),
        "B": CaseConfig(batch=64, small=6, gammas=[20, 4]),
        "C": CaseConfig(dim=512, local_dim=128, large_map=[4, 4], gammas=[8, 4]),
    }


@dataclass
class CriterionConfig(BenchConfig):
    """Options of ``bench criterion``.

    Attributes:
        cases: names in ``sizes``, ``nt_xent`` and ``ranks``.
        parts: of the cases in ``sizes``: ``global``, ``local``.
        contenders: ``ours`` (always), ``textbook``, ``lightly``.
        nt_xent: batch sizes of the NT-Xent case; ``nt_xent_dim`` is the dimension.
        ranks: sizes of the case that counts the work of one process of many.
        sizes: of each case by name.
    """

    cases: list[str] = field(default_factory=lambda: ["A", "B", "C", NT_XENT, RANKS])
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS))
    nt_xent: list[int] = field(default_factory=lambda: [256, 512, 1024])
    nt_xent_dim: int = 128
    ranks: RanksConfig = field(default_factory=RanksConfig)
    sizes: dict[str, CaseConfig] = field(default_factory=_sizes)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, given, valid in (
            ("case", self.cases, [*self.sizes, NT_XENT, RANKS]),
            ("part", self.parts, PARTS),
            ("contender", self.contenders, CONTENDERS),
        ):
            if not given:
                raise UserError(f"no {kind} is named: {kind}s=[] leaves nothing to run")
            for name in given:
                if name not in valid:
                    raise unknown(kind, name, valid)
        if min(self.nt_xent, default=2) < 2 or self.nt_xent_dim < 1:
            raise ValueError("nt_xent must be batch sizes of at least 2, nt_xent_dim at least 1")


@dataclass(frozen=True)
class Inputs:
    """Random inputs of a case: ``embeddings`` ``(N, D)``, ``vectors`` ``(N, P, C)`` and their ``axes``, by view."""

    embeddings: list[Tensor]
    vectors: list[Tensor]
    axes: list[CellAxes]


def make_inputs(case: CaseConfig, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
    """Views that share a part of every vector, with deviations on both sides of the hinge, and random boxes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def embedded(shared: Tensor, rows: int) -> Tensor:
        scale = 0.75 + 0.5 * torch.rand(shared.shape[-1], generator=generator, dtype=torch.float64)
        return (scale * (0.6 * shared + 0.8 * normal(case.batch, rows, shared.shape[-1]))).to(device, dtype)

    pooled, local = normal(case.batch, 1, case.dim), normal(case.batch, 1, case.local_dim)
    embeddings, vectors, axes = [], [], []
    for view, (height, width) in enumerate(case.map_sizes()):
        low, high = (0.4, 1.0) if view < case.large else (0.15, 0.4)
        box = random_boxes(case.batch, low, high, generator).to(device, dtype)
        flip = (torch.rand(case.batch, generator=generator) < 0.5).to(device)
        embeddings.append(embedded(pooled, 1)[:, 0].contiguous())
        vectors.append(embedded(local, height * width))
        axes.append(cell_axes(box, height, width, flip))
    return Inputs(embeddings, vectors, axes)


Loss = Callable[[Sequence[Tensor]], Tensor]


def timed(name: str, loss: Loss, tensors: Sequence[Tensor], *, same_maths: bool = True, absent: str = "") -> Contender:
    """A contender that computes ``loss`` and the gradients of fresh copies of ``tensors``."""

    def prepare() -> list[Tensor]:
        return [t.clone().requires_grad_() for t in tensors]

    def call(leaves: list[Tensor]) -> Outcome:
        value = loss(leaves)
        torch.autograd.backward(value)
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        return Outcome(value.detach(), gradients)

    return Contender(name, call, prepare, same_maths=same_maths, absent=absent)


def _ours_global(num_large: int, embeddings: Sequence[Tensor]) -> Tensor:
    return VICRegCriterion().views(embeddings, num_large).total


def _ours_local(config: LocalConfig, inputs: Inputs, num_large: int, vectors: Sequence[Tensor]) -> Tensor:
    criterion = LocalCriterion(resolve(config, "ours"), VICRegCriterion())
    maps = [CellMap(v, a, large=i < num_large) for i, (v, a) in enumerate(zip(vectors, inputs.axes))]
    return criterion(maps).total


def filtered(gammas: Sequence[int]) -> LocalConfig:
    """Options under which our local criterion is lightly's and the textbook's: both matchings filtered, in order of
    distance."""
    keep = [float(g) for g in gammas]
    # Equal gammas do not depend on which view comes first, and by size each pair of views is compared once.
    by = "size" if gammas[0] == gammas[1] else "argument"
    return LocalConfig(
        gamma=keep,
        feature_gamma=list(keep),
        gamma_by=by,
        max_distance=0.0,
        order="distance",
        feature_space="embeddings",
        mutual=False,
    )


def _chosen(comparison: Comparison, names: Sequence[str]) -> list[Contender]:
    """Ours, which is the reference, and those asked for."""
    return [c for c in comparison.contenders if c.name.startswith("ours") or c.name in names]


Maker = Callable[[str, CaseConfig, Inputs, str], Comparison]
"""Makes a comparison of a title, sizes, inputs, and why lightly is absent."""


def global_comparison(name: str, case: CaseConfig, inputs: Inputs, absent: str) -> Comparison:
    """VICReg on pooled embeddings."""
    lightly: Loss = _never if absent else lightly_losses.vicreg_global(case.large)
    contenders = [
        timed("ours", partial(_ours_global, case.large), inputs.embeddings),
        timed("textbook", partial(textbook.vicreg_global, num_large=case.large), inputs.embeddings),
        timed("lightly", lightly, inputs.embeddings, absent=absent),
    ]
    title = f"{name} global: VICReg, {case.views()}, N {case.batch}, D {case.dim}"
    return Comparison(title, contenders)


def local_comparison(name: str, case: CaseConfig, inputs: Inputs, absent: str) -> Comparison:
    """VICRegL's local criterion on maps."""
    sizes, gammas = case.map_sizes(), (case.gammas[0], case.gammas[1])
    points = [axes.points() for axes in inputs.axes]
    lightly: Loss = _never if absent else lightly_losses.vicregl_local(points, sizes, case.large, gammas)
    plain = partial(textbook.vicregl_local, points=points, num_large=case.large, gammas=gammas)
    contenders = [
        timed("ours", partial(_ours_local, filtered(gammas), inputs, case.large), inputs.vectors),
        timed("textbook", plain, inputs.vectors),
        timed("lightly", lightly, inputs.vectors, absent=absent),
        timed(
            "ours (preset)",
            partial(_ours_local, LocalConfig(feature_space="embeddings"), inputs, case.large),
            inputs.vectors,
            same_maths=False,
        ),
    ]
    cells = " and ".join(f"{c}x{case.local_dim}" for c in dict.fromkeys(case.cells()))
    title = f"{name} local: VICRegL, {case.views()}, N {case.batch}, maps {cells}, gammas {gammas[0]}, {gammas[1]}"
    note = (
        f"ours (preset): the default preset, which keeps every match, not the closest {gammas[0]} and {gammas[1]}: "
        "more maths than the other rows. Neighbours are searched among the embeddings; there is no backbone here."
    )
    return Comparison(title, contenders, notes=[note])


def nt_xent_comparison(name: str, case: CaseConfig, inputs: Inputs, absent: str) -> Comparison:
    """NT-Xent on pairs."""
    pair = inputs.embeddings
    criterion = ContrastiveCriterion(TEMPERATURE)
    lightly = _never if absent else lightly_losses.nt_xent(TEMPERATURE)
    contenders = [
        timed("ours", lambda z: criterion.views(z, 2).total, pair),
        timed("textbook", lambda z: textbook.nt_xent(z[0], z[1], TEMPERATURE), pair),
        timed("lightly", lambda z: lightly(z[0], z[1]), pair, absent=absent),
    ]
    title = f"{name}: N {case.batch}, D {case.dim}, temperature {TEMPERATURE}"
    return Comparison(title, contenders)


def _never(*_: object) -> Tensor:
    raise AssertionError("a contender that is absent is not called")


def reduced(case: CaseConfig, batch: int = 12, dim: int = 48) -> CaseConfig:
    """The case with few images and dimensions, for the check in float64; views, maps and gammas are as they were, and
    so is whether N or D is the larger, on which our way to the covariance depends."""
    batch = min(batch, case.batch)

    def fewer(given: int) -> int:
        return min(given, dim, max(4, batch * given // case.batch))

    return replace(case, batch=batch, dim=fewer(case.dim), local_dim=fewer(case.local_dim))


def _nt_xent_case(batch: int, dim: int) -> CaseConfig:
    return CaseConfig(batch=batch, dim=dim, local_dim=1, large_map=[1, 1], gammas=[1, 1])


def _comparisons(options: CriterionConfig, absent: str, device: torch.device) -> Iterator[Comparison | Counted]:
    nt_xent: Maker = nt_xent_comparison
    parts: dict[str, Maker] = {"global": global_comparison, "local": local_comparison}
    for name in options.cases:
        if name == RANKS:
            yield ranks_case(options.ranks)
            continue
        if name == NT_XENT:
            cases = [(f"NT-Xent {n}", _nt_xent_case(n, options.nt_xent_dim), nt_xent) for n in options.nt_xent]
        else:
            cases = [(name, options.sizes[name], parts[part]) for part in options.parts]
        for title, case, make in cases:
            small = reduced(case)
            exact = make(title, small, make_inputs(small, options.seed, torch.device("cpu"), torch.float64), absent)
            full = make(title, case, make_inputs(case, options.seed, device), absent)
            yield replace(full, contenders=_chosen(full, options.contenders), twin=exact)


@SUITES.register("criterion", CriterionConfig)
def criterion(options: CriterionConfig, device: torch.device) -> Suite:
    """Forward and backward of each loss in float32, on fresh leaves."""
    absent = lightly_losses.missing() if "lightly" in options.contenders else "not asked for"
    facts = [
        ("cases", f"{', '.join(options.cases)}; forward and backward in float32"),
        ("lightly", absent if absent else lightly_losses.version()),
        options.turns(),
    ]
    return Suite(facts, _comparisons(options, absent, device))
