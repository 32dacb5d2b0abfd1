"""Losses as pure functions on ``(..., N, D)``, exact on the global batch of all processes."""

from ssl_toolkit.criteria.distributed import gather_batch, world_size
from ssl_toolkit.criteria.families import ContrastiveCriterion, Criterion, Terms, VICRegCriterion, view_pairs
from ssl_toolkit.criteria.ntxent import nt_xent
from ssl_toolkit.criteria.precision import full_precision, no_autocast
from ssl_toolkit.criteria.vicreg import (
    check_pair,
    covariance,
    invariance,
    std_of,
    variance,
    variance_covariance,
)

__all__ = [
    "ContrastiveCriterion",
    "Criterion",
    "Terms",
    "VICRegCriterion",
    "check_pair",
    "covariance",
    "full_precision",
    "gather_batch",
    "invariance",
    "no_autocast",
    "nt_xent",
    "std_of",
    "variance",
    "variance_covariance",
    "view_pairs",
    "world_size",
]
