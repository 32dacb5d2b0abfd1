"""``ssl-toolkit init``: a commented config to start from."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path

from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import write_text
from ssl_toolkit.own_experiment import SUFFIXES

STARTER = "starter.yaml"
PLAIN = re.compile(r"[\w./+-]+", flags=re.ASCII)


def init(file: str, images: str | None, console: Console) -> int:
    """``ssl-toolkit init [FILE] [--images FOLDER]``: write the starter config.

    Raises:
        UserError: the file is there already or is no YAML by name, or ``images`` is no folder.
    """
    path = Path(file).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(f"{file} must end in {' or '.join(SUFFIXES)}: ssl-toolkit init {file}.yaml")
    if path.exists():
        raise UserError(f"{path} is there already: give another name, or remove it first")
    if images is not None and not Path(images).expanduser().is_dir():
        raise UserError(f"--images {images}: there is no such folder; give the folder that your images are in")
    write_text(path, starter(path, images))
    command = f"ssl-toolkit pretrain {shlex.quote(f'experiment={_hydra(str(path))}')}"
    lines = [f"config   {path}", f"next     {command}"]
    if images is None:
        lines.insert(1, "set      data.root in it, the folder of your images")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


def starter(path: Path, images: str | None) -> str:
    """The text of the starter config, naming itself and the folder of images."""
    text = resources.files("ssl_toolkit").joinpath(STARTER).read_text(encoding="utf-8").replace("=FILE", f"={path}")
    if images is None:
        return text
    # JSON's strings are YAML's too
    root = images if PLAIN.fullmatch(images) else json.dumps(images, ensure_ascii=False)
    return text.replace("root: photos #", f"root: {root} #")


def _hydra(value: str) -> str:
    """``value`` in double quotes where Hydra's grammar wants some."""
    return value if PLAIN.fullmatch(value) else '"' + value.replace('"', '\\"') + '"'
