"""SimCLR: NT-Xent on pooled embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_toolkit.backbones.base import Backbone
from ssl_toolkit.criteria import ContrastiveCriterion, check_temperature
from ssl_toolkit.methods.base import METHODS, HeadConfig, JointEmbedding


@dataclass
class SimCLRConfig:
    """Options of SimCLR.

    Attributes:
        projector: the head; 2048-128 in the paper.
        temperature: of NT-Xent.
    """

    projector: HeadConfig = field(default_factory=lambda: HeadConfig([2048, 128]))
    temperature: float = 0.2

    def __post_init__(self) -> None:
        check_temperature(self.temperature)


@METHODS.register("simclr", SimCLRConfig)
class SimCLR(JointEmbedding):
    """SimCLR (Chen et al., ICML 2020); negatives come from the global batch of all processes."""

    def __init__(self, config: SimCLRConfig, backbone: Backbone) -> None:
        super().__init__(backbone, config.projector, ContrastiveCriterion(config.temperature))
        self.config = config
