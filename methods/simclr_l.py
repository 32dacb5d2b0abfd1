"""SimCLR-L: NT-Xent on pooled embeddings and on matched local embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_toolkit.backbones.base import Backbone
from ssl_toolkit.criteria import ContrastiveCriterion, check_temperature
from ssl_toolkit.methods.base import METHODS, HeadConfig, JointEmbedding
from ssl_toolkit.methods.local import LocalConfig, resolve
from ssl_toolkit.methods.simclr import SimCLRConfig


@dataclass
class SimCLRLConfig(SimCLRConfig):
    """Options of SimCLR-L: those of SimCLR and

    Attributes:
        preset: ``ours``, ``paper`` or ``official``: how cells are matched (`ssl_toolkit.methods.local.PRESETS`).
        alpha: weight of the global criterion against the local one.
        local_projector: embeds every cell.
        local_temperature: of NT-Xent among matched vectors; None takes ``temperature``.
        local: matching options.
    """

    preset: str = "ours"
    alpha: float = 0.75
    local_projector: HeadConfig = field(default_factory=lambda: HeadConfig([512, 512, 512]))
    local_temperature: float | None = None
    local: LocalConfig = field(default_factory=LocalConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_temperature is None:
            self.local_temperature = self.temperature
        check_temperature(self.local_temperature, "local_temperature")
        self.local = resolve(self.local, self.preset)
        if self.local.statistics != "pairs":
            raise ValueError("local.statistics=maps is of variance and covariance, which NT-Xent has not: take vicregl")


@METHODS.register("simclr_l", SimCLRLConfig)
class SimCLRL(JointEmbedding):
    """SimCLR with VICRegL's local matching (VICRegL, Table 4): each slot contrasts its vectors over the batch."""

    def __init__(self, config: SimCLRLConfig, backbone: Backbone) -> None:
        assert config.local_temperature is not None
        super().__init__(
            backbone,
            config.projector,
            ContrastiveCriterion(config.temperature),
            alpha=config.alpha,
            local=config.local,
            local_head=config.local_projector,
            local_criterion=ContrastiveCriterion(config.local_temperature),
        )
        self.config = config
