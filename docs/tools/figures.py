"""The figures of the site, made by the toolkit: ``python docs/tools/figures.py runs``.

``runs`` is a folder with finished runs ``vicreg`` and ``vicregl`` and a collapsed one, ``collapsed``. Those that are
missing are trained first by the commands below (minutes on two CPU cores). Pictures go to docs/figures.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ssl_toolkit.cli import main
from ssl_toolkit.reporting.plots import draw_curve, series_style
from ssl_toolkit.reporting.runs import RunFolder

OUT = Path(__file__).resolve().parents[1] / "figures"
DPI = 160

RUNS = {
    "vicreg": ["experiment=digits_vicreg"],
    "vicregl": ["experiment=digits_vicregl"],
    "collapsed": ["experiment=digits_vicreg", "method.terms=i", "trainer.log_every=5", "monitor.knn_every=null"],
}
"""What ``ssl-toolkit pretrain`` is given for each run; the last one is stopped by the alarm for collapse."""

PICTURES = {
    "matches": ["picture", "matches", "run={runs}/vicregl", "count=1", "gamma=8", "seed=3"],
    "views": ["data", "preview", "data=digit_scenes", "count=2"],
    "multicrop": ["data", "preview", "data=digit_scenes", "views=digit_scenes_multicrop", "count=1"],
    "pca-vicreg": ["picture", "pca", "run={runs}/vicreg", "count=4"],
    "pca-vicregl": ["picture", "pca", "run={runs}/vicregl", "count=4"],
    "similarity-vicregl": ["picture", "similarity", "run={runs}/vicregl", "count=4"],
}
"""Name of the figure and the command that draws it."""

CURVES = ("embedded_std", "embedded_spread", "pooled_rank")
STEPS = 150


def train(runs: Path) -> None:
    """Train what is not there."""
    for name, overrides in RUNS.items():
        if not (runs / name / "metrics.csv").is_file():
            main(["pretrain", *overrides, f"runs_dir={runs}", f"name={name}"])


def draw(name: str, command: list[str], runs: Path) -> None:
    """One picture of `PICTURES`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.png"
        words = [word.format(runs=runs) for word in command]
        if main([*words, f"out={file}"]) != 0:
            raise SystemExit(f"no figure {name}: {' '.join(words)}")
        save(file, name)


def save(file: Path, name: str) -> None:
    """The PNG in 256 colours: half of the size. Chosen for coverage, so that the rare end of a colour scale stays."""
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(OUT / f"{name}.png", optimize=True)


def monitors(runs: Path) -> None:
    """Three columns of metrics.csv of a healthy and a collapsed run."""
    names = ("vicreg", "collapsed")
    shown = []
    for name in names:
        run = RunFolder.read(runs / name)
        early = run.metrics["step"] <= STEPS
        shown.append(replace(run, metrics={key: values[early] for key, values in run.metrics.items()}))
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(CURVES)), CURVES):
        draw_curve(axes, shown, column, range(len(shown)))
    styles = [series_style(i) for i in range(len(names))]
    axes.legend(
        [axes.plot([], [], color=colour, dashes=dashes)[0] for colour, dashes in styles],
        ["VICReg", "VICReg, method.terms=i"],
        fontsize=8,
        frameon=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "monitors.png"
        figure.savefig(file, dpi=DPI, facecolor="white")
        save(file, "monitors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    train(folder)
    for title, words in PICTURES.items():
        draw(title, words, folder)
    monitors(folder)
