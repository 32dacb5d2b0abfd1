"""The run folder: where everything of one pretraining lies."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import write_json, write_text

WEIGHTS = "backbone.safetensors"
"""Written when a run is finished, and the sign of it."""

PACKAGES = ("ssl-toolkit", "torch", "torchvision", "lightning", "timm", "numpy", "opencv-python-headless")


def new_run_folder(root: Path, name: str) -> Path:
    """A folder nobody else has: ``root/name``, or ``name-2`` and so on where it exists."""
    for attempt in range(1, 10_000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the run folder {path}: {error.strerror}") from error
        return path
    raise UserError(f"{root} holds too many runs named {name}; choose another name=")


def default_name(config: DictConfig) -> str:
    """``20261121-093000-vicregl-tiny_resnet-digit_scenes``."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = (now, config.method.name, str(config.backbone.name).replace("/", "-"), config.data.name)
    return "-".join(parts)


def sweep_name(config: DictConfig, differs: Sequence[str]) -> str:
    """The name of one run of a sweep: what differs between its runs closes it, ``method.alpha-0.5``.

    It has no character that Hydra's grammar or a shell would want quoted in ``run=``.
    """
    said = "-".join(re.sub(r"[^\w.+-]+", "-", part.lstrip("+~"), flags=re.ASCII) for part in differs)
    return "-".join(filter(None, (str(config.name or default_name(config)), said)))[:200]


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training the same run; a process that is killed leaves no lock behind.

    Raises:
        UserError: another process trains it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise UserError(f"run={run} is being trained by {who}: wait for it, or stop it") from error
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def initial_weights(path: Path) -> Path:
    """The checkpoint file that ``init=`` means: that file, or the backbone of a finished run.

    Raises:
        UserError: there is none; the message says how to get one.
    """
    what = "give a finished run, a checkpoint file or zoo:NAME"
    if not path.exists():
        raise UserError(f"init={path} does not exist: {what}")
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"init={path} is not finished: go on with it (run={path}), or start from what it has so far: "
            f"init={path / 'checkpoints' / 'last.ckpt'}"
        )
    raise UserError(f"init={path} holds no {WEIGHTS}: {what}")


def environment() -> dict[str, str]:
    """Versions and machine, as recorded beside a run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cuda_device": cuda,
        "threads": str(torch.get_num_threads()),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def write_run_files(run: Path, config: DictConfig) -> None:
    """Write ``config.yaml``, which reproduces the run, and ``environment.json``."""
    write_text(run / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    write_json(run / "environment.json", environment())


def write_baseline_files(run: Path, config: DictConfig) -> None:
    """Make ``run`` the folder of an untrained backbone, so that it can be compared with runs."""
    kept = {"method": {"name": "untrained"}, **{k: config[k] for k in ("backbone", "data", "seed")}}
    write_run_files(run, OmegaConf.create(kept))


def read_run_config(run: Path) -> DictConfig:
    """The resolved config of a run; a folder that is no run is a `UserError` that names it."""
    path = run / "config.yaml"
    if not path.is_file():
        what = "has no config.yaml: not a run folder" if run.exists() else "does not exist"
        raise UserError(f"run={run} {what}")
    try:
        config: Any = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, DictConfig) or "method" not in config:
        raise UserError(f"{path} is not the config of a pretraining run: it has no 'method'")
    return config
