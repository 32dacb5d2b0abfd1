"""VICReg: variance, invariance and covariance on pooled embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_toolkit.backbones.base import Backbone
from ssl_toolkit.criteria import VICRegCriterion
from ssl_toolkit.methods.base import METHODS, HeadConfig, JointEmbedding
from ssl_toolkit.methods.local import sums_sides


def criterion_of(terms: str, config: VICRegConfig) -> VICRegCriterion:
    """The criterion with the terms named by letters (``vic``, ``vi``, ``i``); the others have weight 0."""
    return VICRegCriterion(
        invariance=config.invariance if "i" in terms else 0.0,
        variance=config.variance if "v" in terms else 0.0,
        covariance=config.covariance if "c" in terms else 0.0,
        sum_sides=sums_sides(config.preset),
    )


def check_terms(key: str, terms: str) -> None:
    """``terms`` must be letters of ``vic``, each once."""
    if not terms or set(terms) - set("vic") or len(set(terms)) != len(terms):
        raise ValueError(f"{key} must be letters of vic (variance, invariance, covariance), such as vi, not {terms!r}")


@dataclass
class VICRegConfig:
    """Options of VICReg.

    Attributes:
        expander: the head; 8192-8192-8192 in the paper (ResNet-50, batch 2048), whose weights dominate the memory of a
            small run.
        invariance, variance, covariance: coefficients lambda, mu, nu (25, 25, 1).
        terms: which of them the global criterion uses.
        preset: ``ours`` and ``official`` average variance and covariance over views, ``paper`` adds both sides (Eq. 1).
    """

    expander: HeadConfig = field(default_factory=lambda: HeadConfig([2048, 2048, 2048]))
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    terms: str = "vic"
    preset: str = "ours"

    def __post_init__(self) -> None:
        check_terms("terms", self.terms)
        criterion_of(self.terms, self)


@METHODS.register("vicreg", VICRegConfig)
class VICReg(JointEmbedding):
    """VICReg (Bardes, Ponce, LeCun, ICLR 2022) on any number of views."""

    def __init__(self, config: VICRegConfig, backbone: Backbone) -> None:
        super().__init__(backbone, config.expander, criterion_of(config.terms, config))
        self.config = config
