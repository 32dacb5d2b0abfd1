"""``ssl-toolkit data``: looking at data before training on it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.data import build_dataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.json_output import Emit
from ssl_toolkit.registry import typed
from ssl_toolkit.views import ViewBatch, ViewDataset, ViewsConfig

ACTIONS = ("check", "preview")


@dataclass
class PreviewConfig:
    """Options of a sheet of views, beside its data and recipe.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        count: images, spread evenly over the split.
        seed, epoch: the views are those of training with this seed in this epoch, counted from 0.
        out: the PNG.
    """

    split: str = "train"
    count: int = 6
    seed: int = 0
    epoch: int = 0
    out: str = "preview.png"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")
        if min(self.seed, self.epoch) < 0:
            raise ValueError("seed and epoch must not be negative")
        if not self.out.endswith(".png"):
            raise ValueError(f"out is a picture and ends in .png, not {self.out!r}")


def data(action: str | None, arguments: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """``ssl-toolkit data check PATH`` and ``ssl-toolkit data preview``; returns the exit status."""
    if action is None or "=" in action:
        raise UserError("name what to do first: ssl-toolkit data check PATH, or ssl-toolkit data preview data=NAME")
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if action == "check":
        return check(arguments, console, emit)
    if emit is not None:
        raise UserError("--json is for check; data preview has none")
    return preview(arguments, console)


def check(arguments: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """Decode every image, print what is there and what is wrong, write the clean list.

    Returns:
        0 where all images are fine, 1 where some are unreadable or lie in two splits.
    """
    # Imported here: only this command needs them.
    from ssl_toolkit.data.checking.check import CheckConfig
    from ssl_toolkit.data.checking.check import check as check_images
    from ssl_toolkit.data.checking.report import measured, print_report

    paths = [text for text in arguments if "=" not in text or Path(text).exists()]
    if len(paths) != 1:
        named = f"{len(paths)} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
        what = "say what to check" if not paths else f"one folder or list at a time, not {named}"
        raise UserError(f"{what}: ssl-toolkit data check PATH [key=value ...]")
    composed = compose_config("data_check", [text for text in arguments if text != paths[0]])
    config: CheckConfig = typed(CheckConfig, composed, "check")
    report = check_images(Path(paths[0]).expanduser(), config, console)
    if emit is not None:
        emit(report)
        return 0 if report.fine else 1
    print_report(report, console, config.max_shown)
    lists = {split.name: split.clean_list for split in report.splits if split.clean_list is not None}
    lines = [f"list     {name}" for name in lists.values()] + [f"report   {report.json}"]
    if "train" in lists or "" in lists:
        lines.append(f"next     {suggestion(lists, config.in_channels, config.bits, measured(report))}")
    console.print("\n" + "\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0 if report.fine else 1


def suggestion(lists: dict[str, str], in_channels: int, bits: int, statistics: str) -> str:
    """The command that pretrains on the clean lists, as a shell takes it.

    Args:
        lists: path by split; a single one has the empty name.
        in_channels, bits: of the check.
        statistics: the options ``data.mean`` and ``data.std``.
    """
    words = ["ssl-toolkit pretrain data=file_list"]
    words += [_path_option(f"{name}_file" if name in ("val", "test") else "file", path) for name, path in lists.items()]
    words += [f"data.in_channels={in_channels}"] if in_channels != 3 else []
    words += [f"data.bits={bits}"] if bits != 8 else []
    words += [f"'{option}'" for option in statistics.split()]
    return " ".join(words)


def _path_option(key: str, path: str) -> str:
    """``data.key=path``, quoted for Hydra and the shell where it has to be."""
    if re.fullmatch(r"[\w./-]+", path, flags=re.ASCII):
        return f"data.{key}={path}"
    if not set("'\"\\$") & set(path):  # Hydra's other quotes: those of override_of inside the shell's are hard to read
        return f"'data.{key}=\"{path}\"'"
    return shlex.quote(override_of(f"data.{key}", path))


def preview(overrides: Sequence[str], console: Console) -> int:
    """Draw a sheet of images with their views and boxes."""
    from ssl_toolkit.views.sheet import save_sheet

    config = compose_config("data_preview", overrides)
    options, views = _preview_options(config)
    images = build_dataset(config.data, options.split)
    chosen = np.linspace(0, len(images) - 1, min(options.count, len(images))).astype(int).tolist()
    batch = ViewDataset(images, views, options.seed).__getitems__([(options.epoch, index) for index in chosen])
    if not isinstance(batch, ViewBatch):
        raise batch
    chain = [group.describe(images.in_channels) for group in views.groups]
    out = Path(options.out).expanduser()
    seeds = [images.image(index) for index in batch.index.tolist()]
    save_sheet(out, seeds, batch, header=[f"{config.data.name}, {options.split}: {len(images):,} images", *chain])
    lines = [f"views    {line}" for line in chain] + [f"skipped  {reason}" for reason in batch.unreadable]
    console.print("\n".join([*lines, f"sheet    {out}"]), highlight=False, markup=False, soft_wrap=True)
    return 0


def _preview_options(config: DictConfig) -> tuple[PreviewConfig, ViewsConfig]:
    own = {str(key): value for key, value in config.items() if key not in ("data", "views")}
    return typed(PreviewConfig, own, "preview"), typed(ViewsConfig, config.views, "views")
