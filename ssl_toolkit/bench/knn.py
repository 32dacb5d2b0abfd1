"""``bench knn``: class predictions by nearest neighbours, ours and those of faiss, lightly and scikit-learn."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Counted, Outcome, Suite
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.bank import Bank
from ssl_toolkit.evaluation.knn import vote
from ssl_toolkit.evaluation.neighbours import nearest, pick_engine

CONTENDERS = {"ours": "", "faiss": "faiss-cpu", "lightly": "lightly", "sklearn": "scikit-learn"}
"""What to install for each."""
CHECKED, TIES = 256, 2e-6
"""Queries whose neighbours are compared with brute force in float64, and what counts as equally near there."""
VOTES = 1024


@dataclass
class KnnBenchConfig(BenchConfig):
    """Options of ``bench knn``.

    Attributes:
        contenders: ``ours`` (always), ``faiss``, ``lightly``, ``sklearn``.
        bank, queries: features.
        dim: numbers of a feature.
        classes: of the features.
        ks: numbers of neighbours, a comparison for each.
        noise: deviation of features from the centre of their class, in deviations of the centres.
        temperature: of the vote.
        lightly_batch: queries a call of lightly's ``knn_predict``, whose memory grows with them.
    """

    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS))
    bank: int = 50_000
    queries: int = 10_000
    dim: int = 512
    classes: int = 1000
    ks: list[int] = field(default_factory=lambda: [20, 200])
    noise: float = 5.0
    temperature: float = 0.07
    lightly_batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.contenders:
            raise UserError("no contender is named: contenders=[] leaves nothing to run")
        for name in self.contenders:
            if name not in CONTENDERS:
                raise unknown("contender", name, CONTENDERS)
        if min(self.bank, self.queries, self.dim, self.classes, self.lightly_batch) < 1:
            raise ValueError("bank, queries, dim, classes and lightly_batch must be 1 or more")
        if not self.ks or not 0 < min(self.ks) <= max(self.ks) <= self.bank:
            raise ValueError(f"ks must be numbers from 1 to bank={self.bank}, not {list(self.ks)}")
        if not (self.noise >= 0 and self.temperature > 0):
            raise ValueError("noise must not be negative, temperature positive")


@dataclass(frozen=True)
class Problem:
    """Features of unit length ``(M, D)`` with ``labels`` ``(M,)``, and ``queries`` ``(Q, D)``."""

    features: Tensor
    labels: Tensor
    queries: Tensor
    classes: int
    temperature: float


def make_problem(options: KnnBenchConfig, rows: int, queries: int, device: torch.device) -> Problem:
    """Features about the centres of their classes."""
    generator = torch.Generator().manual_seed(options.seed)
    centres = torch.randn(options.classes, options.dim, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, options.classes, (count,), generator=generator)
        noise = torch.randn(count, options.dim, generator=generator)
        return F.normalize(centres[labels] + options.noise * noise, dim=1).to(device), labels.to(device)

    features, labels = draw(rows)
    return Problem(features, labels, draw(queries)[0], options.classes, options.temperature)


Predict = Callable[[], Tensor]
"""Gives the class of each query, ``(Q,)``."""


def _voted(problem: Problem, k: int, similarity: Tensor, index: Tensor) -> Tensor:
    found = [
        vote(s, problem.labels[i], [k], [problem.temperature], problem.classes)[0, 0].argmax(1)
        for s, i in zip(torch.split(similarity, VOTES), torch.split(index, VOTES))
    ]
    return torch.cat(found)


def _ours(problem: Problem, k: int) -> Predict:
    """From features on: what is made of the bank takes part in the time."""
    return lambda: _voted(problem, k, *nearest(Bank(problem.features), problem.queries, k))


def _faiss(problem: Problem, k: int) -> Predict:
    faiss = importlib.import_module("faiss")
    index = faiss.IndexFlatIP(problem.features.shape[1])
    index.add(problem.features.cpu().numpy())
    queries = problem.queries.cpu().numpy()

    def predict() -> Tensor:
        faiss.omp_set_num_threads(torch.get_num_threads())
        values, rows = (torch.from_numpy(x).to(problem.labels.device) for x in index.search(queries, k))
        return _voted(problem, k, values, rows)

    return predict


def _lightly(problem: Problem, k: int, batch: int) -> Predict:
    knn_predict = importlib.import_module("lightly.utils.benchmarking").knn_predict
    bank = problem.features.T.contiguous()

    def predict() -> Tensor:
        parts = torch.split(problem.queries, batch)
        return torch.cat(
            [knn_predict(x, bank, problem.labels, problem.classes, k, problem.temperature)[:, 0] for x in parts]
        )

    return predict


def _sklearn(problem: Problem, k: int) -> Predict:
    neighbors = importlib.import_module("sklearn.neighbors")

    def weigh(distance: np.ndarray) -> np.ndarray:
        weights: np.ndarray = np.exp((1 - distance) / problem.temperature)
        return weights

    classifier = neighbors.KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weigh)
    classifier.fit(problem.features.cpu().numpy(), problem.labels.cpu().numpy())
    queries = problem.queries.cpu().numpy()
    return lambda: torch.from_numpy(classifier.predict(queries))


def _contender(name: str, predict: Predict) -> Contender:
    def call(_: object) -> Outcome:
        classes = predict().cpu().double() + 1
        return Outcome(classes.sum(), [classes])

    return Contender(name, call)


def _contenders(options: KnnBenchConfig, problem: Problem, k: int, absent: dict[str, str]) -> list[Contender]:
    makers: dict[str, Callable[[Problem, int], Predict]] = {
        "ours": _ours,
        "faiss": _faiss,
        "lightly": partial(_lightly, batch=options.lightly_batch),
        "sklearn": _sklearn,
    }
    chosen = [name for name in CONTENDERS if name == "ours" or name in options.contenders]
    return [
        Contender(name, _never, absent=absent[name]) if name in absent else _contender(name, makers[name](problem, k))
        for name in chosen
    ]


def _never(_: object) -> Outcome:
    raise AssertionError("a contender that is absent is not called")


def exact_neighbours(problem: Problem, k: int, count: int = CHECKED) -> int:
    """How many of the first ``count`` queries have the k neighbours that brute force in float64 finds, where those that
    are equally near may stand for each other."""
    queries = problem.queries[:count]
    index = nearest(Bank(problem.features), queries, k)[1]
    similarity = queries.double() @ problem.features.double().T
    best = similarity.topk(k, dim=1).values
    different = index.sort(1).values.diff(dim=1).ne(0).all(1)
    near = (similarity.gather(1, index) - best).abs().amax(1) < TIES
    return int((near & different).sum())


def _comparisons(
    options: KnnBenchConfig, absent: dict[str, str], device: torch.device
) -> Iterator[Comparison | Counted]:
    problem = make_problem(options, options.bank, options.queries, device)
    for k in options.ks:
        few = replace(options, classes=min(20, options.classes))
        small = make_problem(few, max(k, min(600, options.bank)), min(100, options.queries), torch.device("cpu"))
        checked = min(CHECKED, options.queries)
        yield Comparison(
            f"k {k}: {options.queries} queries, {options.bank} x {options.dim}, {options.classes} classes",
            _contenders(options, problem, k, absent),
            items=options.queries,
            memory=True,
            twin=Comparison("small", _contenders(options, small, k, absent)),
            notes=[
                f"ours: neighbours of brute force in float64 for {exact_neighbours(problem, k)} of {checked} queries.",
                "Each predicts classes. What ours makes of the bank is timed; the others' preparation is not.",
            ],
        )


def missing(names: list[str]) -> dict[str, str]:
    """Why contenders cannot run here, by name."""
    return {
        name: f"not installed (pip install {CONTENDERS[name]})"
        for name in names
        if name != "ours" and importlib.util.find_spec(name) is None
    }


@SUITES.register("knn", KnnBenchConfig)
def knn(options: KnnBenchConfig, device: torch.device) -> Suite:
    """Search and weighted vote, on features of unit length."""
    facts = [
        ("knn", f"search by {pick_engine('auto', device, options.bank)}, float32 in the end; vote weighted"),
        options.turns(),
    ]
    return Suite(facts, _comparisons(options, missing(list(options.contenders)), device))
