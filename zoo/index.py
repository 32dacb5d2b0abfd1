"""Published checkpoints by name, and their files on this machine."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.files import atomic_path, cache_dir, sha256, write_text
from ssl_toolkit.progress import progress_bar

BASE = "https://dl.fbaipublicfiles.com/vicregl"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMEOUT = 30.0
BLOCK = 1 << 20


@dataclass(frozen=True)
class Published:
    """A checkpoint that its authors publish.

    Attributes:
        arch: a key of `OFFICIAL_ARCHITECTURES`.
        url: of the backbone alone.
        linear, segmentation: what the authors' README gives: top-1 on ImageNet, frozen linear mIoU on Pascal VOC.
    """

    arch: str
    url: str
    linear: float
    segmentation: float


def _vicregl(arch: str, alpha: str, linear: float, segmentation: float) -> Published:
    return Published(arch, f"{BASE}/{arch}_alpha{alpha}.pth", linear, segmentation)


ZOO: dict[str, Published] = {
    "vicregl_resnet50_alpha0p9": _vicregl("resnet50", "0.9", 71.2, 54.0),
    "vicregl_resnet50_alpha0p75": _vicregl("resnet50", "0.75", 70.4, 55.9),
    "vicregl_convnext_small_alpha0p9": _vicregl("convnext_small", "0.9", 75.9, 66.7),
    "vicregl_convnext_small_alpha0p75": _vicregl("convnext_small", "0.75", 74.6, 67.5),
    "vicregl_convnext_base_alpha0p9": _vicregl("convnext_base", "0.9", 77.1, 69.3),
    "vicregl_convnext_base_alpha0p75": _vicregl("convnext_base", "0.75", 76.3, 70.4),
    "vicregl_convnext_xlarge_alpha0p75": _vicregl("convnext_xlarge", "0.75", 79.4, 78.7),
}
"""The backbones of VICRegL's README."""


def published(name: str) -> Published:
    """The entry of ``name``; an unknown one is a `UserError` with the nearest names."""
    if name not in ZOO:
        raise unknown("zoo checkpoint", name, sorted(ZOO))
    return ZOO[name]


def zoo_file(name: str, console: Console | None = None) -> Path:
    """The checkpoint file of ``name``, downloaded into the cache where it is not there yet.

    The authors publish no checksums: the SHA-256 of the first download is kept beside the file, and a file that no
    longer has it is refused. A file that was put there by hand is taken as it is.

    Raises:
        UserError: an unknown name, no way to the server, or a file that has changed.
    """
    entry = published(name)
    path = cache_dir() / "zoo" / entry.url.rsplit("/", 1)[1]
    kept = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        _download(entry.url, path, console)
        write_text(kept, f"{sha256(path)}\n")
    elif kept.is_file() and kept.read_text(encoding="utf-8").strip() != sha256(path):
        raise UserError(f"{path} is not what was downloaded (its SHA-256 differs from {kept.name}): delete both files")
    return path


def _download(url: str, path: Path, console: Console | None) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_path(path) as temporary:
            total = int(answer.headers.get("Content-Length") or 0)
            with (
                temporary.open("wb") as file,
                progress_bar(f"downloading {path.name}", total, "bytes", console=console) as bar,
            ):
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.advance(len(block))
                if total and bar.done != total:
                    raise OSError(f"{bar.done} of {total} bytes arrived")
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot download {url} ({reason}): put the file at {path} yourself") from error
