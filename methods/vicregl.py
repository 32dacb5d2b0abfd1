"""VICRegL: VICReg on pooled embeddings and on matched local embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_toolkit.backbones.base import Backbone
from ssl_toolkit.methods.base import METHODS, HeadConfig, JointEmbedding
from ssl_toolkit.methods.local import LocalConfig, resolve
from ssl_toolkit.methods.vicreg import VICRegConfig, check_terms, criterion_of


@dataclass
class VICRegLConfig(VICRegConfig):
    """Options of VICRegL: those of VICReg and

    Attributes:
        preset: ``ours``, ``paper`` or ``official``; the values behind each are in ``local.PRESETS``.
        alpha: weight of the global criterion against the local one (Eq. 4); 0.75 or 0.9 in the paper.
        projector: the local projector; 512-512-512 in the paper.
        local_terms: which VICReg terms the local criterion uses (Table 7).
        local: matching options.
    """

    alpha: float = 0.75
    projector: HeadConfig = field(default_factory=lambda: HeadConfig([512, 512, 512]))
    local_terms: str = "vic"
    local: LocalConfig = field(default_factory=LocalConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_terms("local_terms", self.local_terms)
        criterion_of(self.local_terms, self)
        self.local = resolve(self.local, self.preset)


@METHODS.register("vicregl", VICRegLConfig)
class VICRegL(JointEmbedding):
    """VICRegL (Bardes, Ponce, LeCun, NeurIPS 2022), Eq. 4, with any number of large and small views (Eq. 5)."""

    def __init__(self, config: VICRegLConfig, backbone: Backbone) -> None:
        super().__init__(
            backbone,
            config.expander,
            criterion_of(config.terms, config),
            alpha=config.alpha,
            local=config.local,
            local_head=config.projector,
            local_criterion=criterion_of(config.local_terms, config),
        )
        self.config = config
