"""View recipes: what is cropped, and what happens to its pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

ENGINES = ("auto", "torch", "dali")
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass
class ViewGroup:
    """Views that share a size. Probabilities given as a list go by position in the group, the last one repeating, which
    gives the asymmetric chains of VICReg (blur 1.0 and 0.1, solarize 0.0 and 0.2). Views that differ in anything else
    are groups of their own.

    Attributes:
        count: views of this group per image.
        size: side in pixels.
        large: large views are matched with every other view, small ones with large ones only.
        scale: range of the crop's share of the image area.
        ratio: range of the crop's width / height.
        interpolation: ``bicubic`` or ``bilinear``, antialiased.
        flip: probability of mirroring left to right.
        jitter: probability of colour jitter; its four parts come in random order as in torchvision.
        brightness, contrast, saturation, hue: strengths; hue in turns of the colour circle (0.5 is half a turn).
        gray: probability of dropping colour.
        blur: probability of Gaussian blur, by position.
        blur_sigma: range of its standard deviation in pixels.
        solarize: probability of inverting pixels of 128 and above, by position.
    """

    count: int = 2
    size: int = 224
    large: bool = True
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: list[float] = field(default_factory=lambda: [1.0, 0.1])
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])
    solarize: list[float] = field(default_factory=lambda: [0.0, 0.2])

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8:
            raise ValueError(f"a view group needs count >= 1 and size >= 8, not {self.count} and {self.size}")
        for name in ("scale", "ratio", "blur_sigma"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise ValueError(f"{name} must be two positive numbers [low, high], low first, not {list(values)}")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image area, at most 1, not {list(self.scale)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be {' or '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        for name in ("flip", "jitter", "gray"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("blur", "solarize"):
            values = getattr(self, name)
            if not values or not all(0 <= v <= 1 for v in values):
                raise ValueError(f"{name} must be a list of probabilities, one per position, not {list(values)}")
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError("brightness, contrast and saturation must be >= 0 and hue between 0 and 0.5")

    def at(self, values: list[float], position: int) -> float:
        """The value for a position of the group; the last one repeats."""
        return values[min(position, len(values) - 1)]

    def describe(self, channels: int = 3) -> str:
        """One line: the whole chain as it is done to images of ``channels`` channels."""
        kind = "large" if self.large else "small"
        strengths = [("brightness", self.brightness), ("contrast", self.contrast)]
        if channels == 3:
            strengths += [("saturation", self.saturation), ("hue", self.hue)]
        jitter = ", ".join(f"{name} {value:g}" for name, value in strengths if value)
        blur, solarize = (self._by_position(values) for values in (self.blur, self.solarize))
        parts = [
            f"{self.count} {kind} views of {self.size} px",
            f"crop {self.scale[0]:g} to {self.scale[1]:g} of the area, {self.ratio[0]:.3g} to {self.ratio[1]:.3g} wide",
            self.interpolation,
            f"flip {self.flip:g}",
            f"jitter {self.jitter:g} ({jitter})" if self.jitter and jitter else "no jitter",
            *([f"gray {self.gray:g}"] if channels == 3 else []),
            f"blur {blur} (sigma {self.blur_sigma[0]:g} to {self.blur_sigma[1]:g})" if max(self.blur) else "no blur",
            f"solarize {solarize}" if max(self.solarize) else "no solarization",
        ]
        left_out = [] if channels == 3 else [f"saturation, hue and gray left out: images have {channels} channel(s)"]
        return ", ".join(parts + left_out)

    def _by_position(self, values: list[float]) -> str:
        given = [f"{self.at(values, position):g}" for position in range(self.count)]
        return given[0] if len(set(given)) == 1 else "/".join(given)


@dataclass
class ViewsConfig:
    """A view recipe.

    Attributes:
        engine: what makes the views: ``torch`` runs everywhere, ``dali`` on Linux, ``auto`` takes DALI on a GPU. Both
            give the same boxes and flips.
        groups: of views; large groups come before small ones.
    """

    engine: str = "auto"
    groups: list[ViewGroup] = field(default_factory=lambda: [ViewGroup()])

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be {', '.join(ENGINES[:-1])} or {ENGINES[-1]}, not {self.engine!r}")
        if not self.groups or not self.groups[0].large:
            raise ValueError("groups must start with large views")
        kinds = [group.large for group in self.groups]
        if kinds != sorted(kinds, reverse=True):
            raise ValueError("groups must list large views before small ones")

    @property
    def num_views(self) -> int:
        """Views per image."""
        return sum(group.count for group in self.groups)

    @property
    def num_large(self) -> int:
        """Large views per image."""
        return sum(group.count for group in self.groups if group.large)

    def positions(self) -> list[tuple[ViewGroup, int]]:
        """The group of each view and its position in it."""
        return [(group, i) for group in self.groups for i in range(group.count)]

    def sizes(self) -> list[int]:
        """Side in pixels of each view."""
        return [group.size for group, _ in self.positions()]
