"""What ``ssl-toolkit doctor`` looks at, each part by itself, so that one that is broken hides no other."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.requirements import Requirement

from ssl_toolkit import __version__
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import cache_dir

PACKAGE = "ssl-toolkit"
LOUD = ("torch", "torchvision", "lightning", "timm")
"""Packages that are named even where nothing is wrong with them."""

OK, NOTE, BROKEN = "ok", "note", "broken"
GIB = 1024**3
LITTLE_DISK = 5 * GIB
LITTLE_SHARED = GIB // 2
"""View workers pass batches through shared memory; containers often have 64 MiB."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: of the machine: ``packages``, ``machine``, ``compute`` or ``data``.
        status: ``ok``, ``note`` (it works, but) or ``broken``.
        value: what there is.
        advice: what to do, where there is something.
    """

    part: str
    name: str
    status: str
    value: str
    advice: str = ""


def packages() -> Iterator[Finding]:
    """This package, what it needs, and what it can use."""
    yield Finding(
        "packages", PACKAGE, OK, f"{__version__} in {Path(__file__).parent}, Python {platform.python_version()}"
    )
    try:
        required = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "installation", BROKEN, "its metadata is missing", "install it: pip install .")
        return
    for need in required:
        if need.marker is None:
            yield from _needed(need)
    yield from _bytecode("lightning")
    extras: dict[str, list[Requirement]] = {}
    for extra in importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        found = [need for need in required if need.marker is not None and need.marker.evaluate({"extra": extra})]
        if extra not in ("dev", "docs") and found:
            extras[extra] = found
    for extra, needs in extras.items():
        yield _optional(extra, needs)


def installed(need: Requirement) -> tuple[str | None, bool]:
    """Version of a package, None where there is none, and whether it is one that ``need`` takes."""
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return None, False
    return version, need.specifier.contains(version, prereleases=True)


def _needed(need: Requirement) -> Iterator[Finding]:
    version, fits = installed(need)
    if not fits:
        value = f"{version or 'missing'}, {need.specifier} is needed"
        yield Finding("packages", need.name, BROKEN, value, f"pip install '{need.name}{need.specifier}'")
    elif need.name in LOUD:
        yield Finding("packages", need.name, OK, str(version))


def _bytecode(package: str) -> Iterator[Finding]:
    """Whether every command compiles what it imports again, as in containers that do not let Python keep it."""
    spec = importlib.util.find_spec(package)
    if sys.dont_write_bytecode and spec and spec.origin and not (spec.cached and Path(spec.cached).is_file()):
        value = f"PYTHONDONTWRITEBYTECODE is set and {package} is not compiled: commands begin many seconds later"
        yield Finding("packages", "bytecode", NOTE, value, f"python -m compileall -q {Path(spec.origin).parents[1]}")


def _optional(extra: str, needs: list[Requirement]) -> Finding:
    """An extra: all of its packages, or how to get them."""
    states = [(need, *installed(need)) for need in needs]
    value = ", ".join(f"{need.name} {version or 'not installed'}" for need, version, _ in states)
    advice = f"pip install '{PACKAGE}[{extra}]'"
    old = [f"{need.name}{need.specifier}" for need, version, fits in states if version and not fits]
    if old:
        return Finding("packages", f"[{extra}]", NOTE, f"{value}; needs {', '.join(old)}", advice)
    missing = any(version is None for _, version, _ in states)
    return Finding("packages", f"[{extra}]", OK, value, f"optional: {advice}" if missing else "")


def machine() -> Iterator[Finding]:
    """Cores, memory, disk and the cache folder."""
    yield Finding("machine", "system", OK, f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield Finding("machine", "cores", OK, _cores())
    yield Finding("machine", "memory", OK, _memory())
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "" if size >= LITTLE_SHARED else "docker run --shm-size=8g, or trainer.workers=0"
        yield Finding("machine", "shared memory", NOTE if advice else OK, gib(size), advice)
    yield _disk("disk here", Path.cwd(), "runs take gigabytes: runs_dir=FOLDER puts them elsewhere")
    yield _disk("cache", cache_dir(), "SSL_TOOLKIT_CACHE=FOLDER puts it elsewhere")


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:,.1f} GiB"


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = _words(Path("/sys/fs/cgroup/cpu.max"))
    quota = f", held to {int(words[0]) / int(words[1]):g} by the container" if words and words[0].isdigit() else ""
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{usable}{quota}{f', OMP_NUM_THREADS={threads}' if threads else ''}"


def _memory() -> str:
    lines = [line.split() for line in _text(Path("/proc/meminfo")).splitlines()]
    told = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    if not told:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        return gib(pages) if pages else "unknown"
    words = _words(Path("/sys/fs/cgroup/memory.max"))
    held = f", held to {gib(int(words[0]))} by the container" if words and words[0].isdigit() else ""
    return f"{gib(told['MemTotal'])}, {gib(told.get('MemAvailable', 0))} free{held}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _disk(name: str, folder: Path, advice: str) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("machine", name, BROKEN, f"{folder} cannot be written", advice)
    free = shutil.disk_usage(there).free
    little = free < LITTLE_DISK
    return Finding("machine", name, NOTE if little else OK, f"{folder}, {gib(free)} free", advice if little else "")


def compute() -> Iterator[Finding]:
    """What the tensors are computed on and in, and what makes the views."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("compute", "torch", BROKEN, _line(error), "install it again: pip install --force-reinstall torch")
        return
    yield _tried("torchvision", _torchvision, "its build does not fit torch: pip install --upgrade torch torchvision")
    yield from _gpus(torch)
    from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision
    from ssl_toolkit.views import choose_engine

    device = pick_device("auto")
    dtype = pick_precision("auto", device)
    fits = "the driver and the torch build must fit: see pytorch.org/get-started, or use trainer.device=cpu"
    yield _tried("device", lambda: str(_product(torch, device, torch.float32).device), fits)
    what = describe_hardware(device, dtype)
    yield _tried(
        "precision", lambda: f"{_named(_product(torch, device, dtype).dtype)}: {what}", "trainer.precision=fp32"
    )
    images: Any = SimpleNamespace(in_channels=3, bits=8)
    yield _tried("view engine", lambda: " (".join(choose_engine("auto", device, images)) + ")", "views.engine=torch")
    yield _tried("processes", lambda: _processes(torch), "several devices need torch.distributed: trainer.devices=1")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _tried(name: str, look: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding("compute", name, OK, look())
    except Exception as error:  # whatever it is, it is what the person wants to know
        return Finding("compute", name, BROKEN, _line(error), advice)


def _torchvision() -> str:
    import torch
    from torchvision.io import decode_jpeg, encode_jpeg
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    if nms(boxes, torch.tensor([1.0, 0.5]), 0.5).tolist() != [0]:
        raise RuntimeError("nms gives wrong boxes")
    picture = torch.full((3, 16, 16), 128, dtype=torch.uint8)
    if (decode_jpeg(encode_jpeg(picture)).int() - 128).abs().max() > 4:
        raise RuntimeError("JPEGs are decoded wrongly")
    return "decodes JPEGs, its operators work"


def _gpus(torch: Any) -> Iterator[Finding]:
    """Each CUDA GPU, or why there is none where a driver is."""
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            value = f"{about.name}, {gib(about.total_memory)}, compute capability {about.major}.{about.minor}"
            yield Finding("compute", f"cuda:{number}", OK, value)
        yield Finding("compute", "CUDA", OK, f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    elif driver and torch.version.cuda is None:
        yield Finding("compute", "CUDA", NOTE, "there is a driver, but torch is built without CUDA",
                      "install a CUDA build of torch: pytorch.org/get-started")  # fmt: skip
    elif driver:
        yield Finding("compute", "CUDA", NOTE, f"there is a driver, but torch (CUDA {torch.version.cuda}) sees no GPU",
                      "look at CUDA_VISIBLE_DEVICES, and whether nvidia-smi shows a driver new enough")  # fmt: skip
    else:
        yield Finding("compute", "CUDA", OK, "no NVIDIA driver: training is on the CPU")


def _product(torch: Any, device: Any, dtype: Any) -> Any:
    """The device on which a small product comes out right, as a check that it computes at all."""
    ones = torch.ones(64, 64, device=device, dtype=dtype)
    found = ones @ ones
    if not bool((found == 64).all()):
        raise RuntimeError(f"{device} multiplies matrices wrongly in {dtype}")
    return SimpleNamespace(dtype=found.dtype, device=found.device)


def _named(dtype: Any) -> str:
    return {"torch.bfloat16": "bf16", "torch.float32": "fp32"}.get(str(dtype), str(dtype))


def _processes(torch: Any) -> str:
    if not torch.distributed.is_available():
        raise RuntimeError("torch is built without torch.distributed")
    known = {"nccl": torch.distributed.is_nccl_available(), "gloo": torch.distributed.is_gloo_available()}
    return ", ".join(name for name, there in known.items() if there)


def data(path: str) -> Finding:
    """A folder or list of images: how many, of how many classes, and whether three of them can be read."""
    from ssl_toolkit.data.checking.lists import find
    from ssl_toolkit.data.decode import read_image

    try:
        found = find(Path(path).expanduser(), "auto")
        count = len(found.names)
        for index in sorted({0, count // 2, count - 1}):
            read_image(Path(found.path(index)))
    except (UserError, OSError) as error:
        return Finding("data", path, BROKEN, _line(error).removeprefix("UserError: "), f"ssl-toolkit data check {path}")
    splits = ", ".join(name for name in found.splits if name)
    parts = [f"{count:,} images", *([splits] if splits else [])]
    parts.append(f"{len(found.classes):,} classes" if found.classes else "no labels")
    return Finding("data", path, OK, ", ".join(parts))
