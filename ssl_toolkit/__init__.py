"""Self-supervised visual features that are good globally and locally."""

__version__ = "0.1.0"
