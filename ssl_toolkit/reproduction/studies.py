"""Which runs a table or figure of the paper is made of, and what the paper found."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from ssl_toolkit.config import CONFIGS
from ssl_toolkit.errors import UserError, unknown

SCALES = ("mini", "paper")
COLUMNS = {"classification": "top-1", "segmentation": "mIoU", "time": "time", "memory": "GiB"}
"""What can be compared, and its heading."""


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        overrides: of ``configs/pretrain.yaml``, by scale, the study's base included.
        paper: column to the paper's number, empty where it has none.
    """

    name: str
    overrides: dict[str, list[str]]
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A table or figure: settings that differ in one thing.

    Attributes:
        question: what it answers, in one sentence.
        paper_setting: what the paper's numbers were measured on; empty where the paper has none.
        columns: what is compared, keys of `COLUMNS`.
        rows: the settings; differences are to the first, unless ``pairs`` says otherwise.
        pairs: names of rows to be compared, the second less the first.
        joined: whether rows are steps of one quantity, which a line joins in the figure.
        pictures: kinds of ``ssl-toolkit picture`` drawn of each run.
    """

    name: str
    title: str
    question: str
    paper_setting: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    joined: bool = False
    pictures: tuple[str, ...] = ()


def study_names() -> list[str]:
    """Names of the files in ``configs/reproduce``."""
    folder = resources.files(CONFIGS) / "reproduce"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def read_study(name: str) -> Study:
    """The study of that name; an unknown one is a `UserError` with the nearest names."""
    if name not in study_names():
        raise unknown("study", name, [*study_names(), "all"])
    text = (resources.files(CONFIGS) / "reproduce" / f"{name}.yaml").read_text(encoding="utf-8")
    values: Any = OmegaConf.to_container(OmegaConf.create(text))
    base = values.get("base") or {scale: [] for scale in SCALES}
    rows = tuple(_row(row, base) for row in values["rows"])
    names = [row.name for row in rows]
    pairs = tuple((first, second) for first, second in values.get("pairs") or [(names[0], n) for n in names[1:]])
    if wrong := {n for pair in pairs for n in pair} - set(names):
        raise UserError(f"configs/reproduce/{name}.yaml: pairs name {sorted(wrong)}, which are no rows")
    return Study(
        name,
        values["title"],
        values["question"],
        values.get("paper_setting") or "",
        tuple(values.get("columns") or ("classification", "segmentation")),
        rows,
        pairs,
        bool(values.get("joined", False)),
        tuple(values.get("pictures") or ()),
    )


def _row(values: dict[str, Any], base: dict[str, list[str]]) -> Row:
    given = values["overrides"]
    by_scale = given if isinstance(given, dict) else dict.fromkeys(SCALES, given)
    overrides = {scale: [*base[scale], *by_scale[scale]] for scale in SCALES}
    return Row(values["name"], overrides, {k: float(v) for k, v in (values.get("paper") or {}).items()})
