"""Choosing a view engine, and the loader it makes."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from typing import NamedTuple

import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.views.loader import EpochBatches, TorchLoader, ViewLoader
from ssl_toolkit.views.photometric import MOST_CHANNELS
from ssl_toolkit.views.reading import Images, Unreadable
from ssl_toolkit.views.spec import ViewsConfig

INSTALL_DALI = "pip install 'ssl-toolkit[dali]' (Linux)"
OLDEST_DALI = (2, 2)
"""2.0 does not turn JPEGs as their EXIF orientation says; 2.2 and 2.4 do (a test compares the engines)."""


class Engine(NamedTuple):
    """An engine and why it is used.

    Attributes:
        name: ``torch`` or ``dali``.
        reason: a few words.
    """

    name: str
    reason: str


def choose_engine(wanted: str, device: torch.device, images: Images) -> Engine:
    """The engine that ``wanted`` (``auto``, ``torch`` or ``dali``) means here.

    ``auto`` takes DALI where it imports, training is on a CUDA device, and it can read the images.

    Raises:
        UserError: DALI is asked for and cannot run.
    """
    if wanted == "torch":
        return Engine("torch", "as asked")
    obstacle = _obstacle(images)
    if wanted == "dali":
        if obstacle:
            raise UserError(f"views.engine=dali cannot be used: {obstacle}; use views.engine=torch")
        return Engine("dali", "as asked")
    if device.type != "cuda":
        return Engine("torch", f"auto: DALI is faster only with a CUDA device, this is {device.type}")
    if obstacle:
        return Engine("torch", f"auto: {obstacle}")
    return Engine("dali", "auto: DALI is installed and there is a CUDA device")


def _obstacle(images: Images) -> str:
    """Why DALI cannot make views of ``images``; empty if it can."""
    # Some data sets keep the option in their config alone.
    if max(getattr(source, "bits", 8) for source in (images, getattr(images, "config", None))) > 8:
        return "DALI's graph takes images of 8 bits, these have 16"
    if images.in_channels > MOST_CHANNELS:
        return f"DALI takes images of at most {MOST_CHANNELS} channels, these have {images.in_channels}"
    if platform.system() != "Linux":
        return f"DALI runs on Linux, this is {platform.system()}"
    try:
        version = str(importlib.import_module("nvidia.dali").__version__)
    except ImportError as error:
        return f"DALI does not import ({error}); {INSTALL_DALI}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_DALI:
        oldest = ".".join(map(str, OLDEST_DALI))
        return f"DALI is {version}, which leaves turned JPEGs as they lie; {oldest} or newer is needed: {INSTALL_DALI}"
    return ""


def view_loader(
    engine: str,
    images: Images,
    config: ViewsConfig,
    *,
    seed: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    position: Callable[[], int] = lambda: 0,
    max_unreadable: float = 0.0,
    report: Callable[[str], None] | None = None,
) -> ViewLoader:
    """The loader of an engine that `choose_engine` named.

    Args:
        engine: ``torch`` or ``dali``.
        images, config, seed: the data set, the recipe, and the seed of everything random.
        batch_size: images a step of this process.
        workers: processes or threads that make views; 0 makes them in this process.
        device: of training. DALI makes the views on it; other engines only prepare the transfer.
        rank, world: this process among all, on all machines.
        position: tells the number of steps already trained, at the start of each epoch or after a resume.
        max_unreadable: share of the data set that may be unreadable and is then skipped.
        report: called with a line for each unreadable image.
    """
    batches = EpochBatches(len(images), batch_size, seed, rank, world)
    unreadable = Unreadable(len(images), max_unreadable, report)
    if engine == "dali":
        from ssl_toolkit.views.dali_engine import DaliLoader  # imports DALI

        return DaliLoader(images, config, seed, batches, position, unreadable, workers=workers, device=device)
    pin_memory = device.type == "cuda"
    return TorchLoader(images, config, seed, batches, position, unreadable, workers=workers, pin_memory=pin_memory)
