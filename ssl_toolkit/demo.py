"""The demo: what a local criterion adds, seen on real pixels in minutes on a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from ssl_toolkit import evaluation, training
from ssl_toolkit.config import compose_config, is_sweep, override_of, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.compare import compare as compare_runs
from ssl_toolkit.reporting.compare import comparison_table
from ssl_toolkit.reporting.report import write_comparison_report

PROTOCOLS = ("knn", "linear", "segmentation")
METHODS = ("vicreg", "vicregl")
INTRO = (
    "Two small networks were pretrained without labels on handwritten digits pasted on photographs, one by VICReg "
    "(a global criterion only) and one by VICRegL (global and local), and compared with the same network untrained. "
    "All are frozen: kNN and linear classification use the pooled features, linear segmentation the last feature map."
)


def _configs(overrides: Sequence[str], folder: Path) -> dict[str, DictConfig]:
    for override in overrides:
        if parse(override).key_or_group in ("experiment", "method", "run", "name", "runs_dir"):
            raise UserError(f"{override}: the demo sets it itself; use ssl-toolkit pretrain")
    if is_sweep(overrides):
        raise UserError("the demo takes one value per option; sweeps are made by ssl-toolkit pretrain -m")
    return {
        name: compose_config(
            "pretrain",
            [f"experiment=digits_{name}", f"name={name}", override_of("runs_dir", folder), *overrides],
        )
        for name in METHODS
    }


def run_demo(overrides: Sequence[str], console: Console) -> Path:
    """Pretrain VICReg and VICRegL, evaluate both and an untrained backbone, print one table and write one report.

    Args:
        overrides: keys of ``configs/pretrain.yaml`` for both methods (``trainer.epochs=1`` for a quick look).

    Returns:
        The folder of the runs, with ``report.html``.
    """
    start = time.monotonic()
    configs = _configs(overrides, Path("runs"))
    folder = training.new_run_folder(Path("runs"), time.strftime("demo-%Y%m%d-%H%M%S"))
    configs = _configs(overrides, folder)
    options = compose_config("eval", ["data=digit_scenes", "scale=mini"])
    data = configs["vicreg"].data

    console.rule("untrained backbone")
    untrained = evaluation.untrained_source(configs["vicreg"].backbone, data, seed=configs["vicreg"].seed)
    baseline = folder / "untrained"
    baseline.mkdir()
    training.write_baseline_files(baseline, configs["vicreg"])
    evaluation.evaluate(PROTOCOLS, untrained, data, options, baseline / "results")
    runs = [baseline]
    for name in METHODS:
        console.rule(f"pretraining with {name}")
        run = training.pretrain(configs[name], console)
        evaluation.evaluate(PROTOCOLS, evaluation.run_source(run), data, options, run / "results")
        runs.append(run)
    comparison = compare_runs(runs)
    console.rule("results")
    console.print(comparison_table(comparison))
    report = write_comparison_report(runs, folder / "report.html", "VICReg and VICRegL on digit scenes", INTRO)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    console.print(f"took     {minutes} min {seconds:02d} s\nreport   {report}", highlight=False, soft_wrap=True)
    return folder
