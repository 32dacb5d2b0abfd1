"""What is watched while a run trains, and when."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_toolkit.errors import UserError, nearest

LOGGERS = ("tensorboard", "wandb")
BEST = ("knn", "linear", "loss")
WANDB_MODES = ("online", "offline", "disabled")


@dataclass
class WandbConfig:
    """Options of Weights & Biases.

    Attributes:
        project, entity: where the run goes; an entity of None is the account's own.
        mode: ``online``, ``offline`` (kept in the run folder for ``wandb sync``) or ``disabled``.
    """

    project: str = "ssl-toolkit"
    entity: str | None = None
    mode: str = "online"

    def __post_init__(self) -> None:
        if self.mode not in WANDB_MODES:
            raise ValueError(f"mode must be one of {', '.join(WANDB_MODES)}, not {self.mode!r}")


@dataclass
class MonitorConfig:
    """What is watched while a run trains.

    Attributes:
        knn_every: epochs between looks at the validation images (kNN, and the linear probe where it is on); None never.
        knn_images: training images in the bank of the kNN probe, and validation images asked, at most.
        linear: train a linear probe beside the run, on detached representations.
        matches_every: epochs between match overlays for the report; None saves those of the end alone.
        best: what ``best.ckpt`` goes by: ``knn``, ``linear`` or ``loss``; None is knn where it is measured, else loss.
        stop_on_collapse: stop a run that has collapsed; otherwise it is said once.
        patience: rows of ``metrics.csv`` in a row that must show the collapse.
        loggers: of ``tensorboard`` and ``wandb``, beside ``metrics.csv``.
        wandb: options of that logger.
    """

    knn_every: int | None = 1
    knn_images: int = 2000
    linear: bool = True
    matches_every: int | None = None
    best: str | None = None
    stop_on_collapse: bool = True
    patience: int = 10
    loggers: list[str] = field(default_factory=list)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if self.knn_every is not None and self.knn_every < 1:
            raise ValueError(f"knn_every must be at least 1, not {self.knn_every}; null turns it off")
        if self.matches_every is not None and self.matches_every < 1:
            raise ValueError(f"matches_every must be at least 1, not {self.matches_every}; null turns it off")
        for key in ("knn_images", "patience"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.best is not None and self.best not in BEST:
            raise ValueError(f"best must be one of {', '.join(BEST)} or null, not {self.best!r}")
        if self.best == "linear" and not self.linear:
            raise ValueError("best=linear needs the linear probe: linear=true")
        if self.best in ("knn", "linear") and self.knn_every is None:
            raise ValueError(f"best={self.best} is measured on validation images: set knn_every")
        for name in self.loggers:
            if name not in LOGGERS:
                raise ValueError(f"unknown logger {name!r}: {nearest(name, LOGGERS)} (metrics.csv is always written)")

    def check(self, data: str, labelled: bool) -> None:
        """Refuse to go by labels that are not there.

        Args:
            data: name of the data set.
            labelled: whether there are labelled validation images, as far as is known.

        Raises:
            UserError: naming the key.
        """
        if self.best in ("knn", "linear") and not labelled:
            raise UserError(
                f"monitor.best={self.best} is measured on labelled validation images, and {data} has none; take "
                "monitor.best=loss"
            )


@dataclass(frozen=True)
class Schedule:
    """Which steps, counted from 1, are measured.

    Attributes:
        log_every: steps between rows of ``metrics.csv``.
        steps_per_epoch, total_steps: of the run.
        knn_every: epochs between looks at validation images; None never.
    """

    log_every: int
    steps_per_epoch: int
    total_steps: int
    knn_every: int | None = None

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the run, ends with ``step``."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def probed(self, step: int) -> bool:
        """Whether validation images are looked at after ``step``: every few epochs, and at the end."""
        if self.knn_every is None:
            return False
        return step % (self.knn_every * self.steps_per_epoch) == 0 or step == self.total_steps

    def logged(self, step: int) -> bool:
        """Whether ``step`` gets a row: the first, every few, those that are `probed`, and the last."""
        return step % self.log_every == 0 or step in (1, self.total_steps) or self.probed(step)
