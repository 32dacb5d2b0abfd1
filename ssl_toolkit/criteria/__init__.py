"""Losses on groups ``(..., N, D)``: pure functions on what they are given, and criteria exact on the batch of all
processes."""

from ssl_toolkit.criteria.distributed import world_size
from ssl_toolkit.criteria.families import ContrastiveCriterion, Criterion, Groups, VICRegCriterion, view_pairs
from ssl_toolkit.criteria.loss import Loss, NonFiniteError
from ssl_toolkit.criteria.matched import Matching, matched_loss
from ssl_toolkit.criteria.ntxent import check_temperature, nt_xent
from ssl_toolkit.criteria.precision import full_precision, no_autocast
from ssl_toolkit.criteria.vicreg import covariance, invariance, std_of, variance

__all__ = [
    "ContrastiveCriterion",
    "Criterion",
    "Groups",
    "Loss",
    "Matching",
    "NonFiniteError",
    "VICRegCriterion",
    "check_temperature",
    "covariance",
    "full_precision",
    "invariance",
    "matched_loss",
    "no_autocast",
    "nt_xent",
    "std_of",
    "variance",
    "view_pairs",
    "world_size",
]
