"""Self-supervised visual features that are good globally and locally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_toolkit.loading import load_backbone as load_backbone

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone"]


def __getattr__(name: str) -> Any:
    """`load_backbone`, imported when it is asked for: with it comes torch."""
    if name == "load_backbone":
        from ssl_toolkit.loading import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
