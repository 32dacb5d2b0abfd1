"""``ssl-toolkit reproduce``: a table of the paper, run and put beside the paper's numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from ssl_toolkit.config import override_of, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, write_json, write_text
from ssl_toolkit.picture_commands import picture
from ssl_toolkit.registry import typed
from ssl_toolkit.reporting.plots import DPI
from ssl_toolkit.reproduction import Study, cluster, read_study, study_names
from ssl_toolkit.reproduction.figure import trade_off_figure
from ssl_toolkit.reproduction.jobs import Job, ReproduceConfig, check_options, plan, run_jobs
from ssl_toolkit.reproduction.summary import Summary, as_csv, markdown, summarise, terminal
from ssl_toolkit.slurm_commands import slurm_options

FORMATS = (".png", ".svg")
IMAGES = 3
"""Images in a picture of a run."""


def reproduce(names: str, overrides: Sequence[str], console: Console) -> int:
    """Train and evaluate the runs of studies, or have SLURM do it, and write each study's table.

    Raises:
        UserError: an unknown study or key; or, when all tables are written, runs that failed.
    """
    if "=" in names:
        raise UserError(
            f"name the study first: ssl-toolkit reproduce table3 {names}; there are {', '.join(study_names())}"
        )
    studies = [read_study(name) for name in (study_names() if names == "all" else names.split(","))]
    own = {field.name for field in dataclasses.fields(ReproduceConfig)}
    ours = {o.key_or_group: o.value() for o in map(parse, overrides) if o.key_or_group in own}
    theirs = [o for o in overrides if parse(o).key_or_group not in own]
    options = typed(ReproduceConfig, ours, "reproduce")
    check_options(options)
    jobs = plan(studies, options, theirs)
    slurm = slurm_options(jobs[0].config)
    if slurm is not None and slurm.dry_run:
        print("\n".join(cluster.scripts([job for job in jobs if not job.done(options)])))
        return 0
    queued, failed = cluster.ask(jobs, options)
    lost = len(failed)
    if slurm is not None:
        rest = [job for job in jobs if job.folder not in queued and not job.done(options)]
        queued |= cluster.queue(rest, options, console)
    else:
        here = [job for job in jobs if job.folder not in queued and job.folder not in failed]
        failed |= run_jobs(here, options, console)
    for study in studies:
        summary = summarise(study, jobs, options.scale, options.seeds, failed, queued)
        _write(summary, jobs, options, " ".join(["ssl-toolkit reproduce", names, *overrides]), console)
    if queued:
        console.print(
            f"{len(queued)} of {len(jobs)} runs are SLURM's: the same command later, with launcher=slurm or without, "
            "collects the tables",
            soft_wrap=True,
        )
    if failed and slurm is None:
        how = "; those that SLURM was given need launcher=slurm" if lost else ""
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again{how}")
    return 0


def _write(summary: Summary, jobs: Sequence[Job], options: ReproduceConfig, command: str, console: Console) -> None:
    """The files of a study, and its table on the terminal."""
    stem = Path(options.out) / f"{summary.study.name}-{options.scale}"
    figure = trade_off_figure(summary)
    if figure is not None:
        for suffix in FORMATS:
            _save(figure, Path(f"{stem}{suffix}"))
            summary.pictures.append(f"{stem.name}{suffix}")
    for job in jobs:
        for row in [row for study, row in job.rows if study == summary.study.name and job.done(options)]:
            summary.pictures.extend(_pictures(summary.study, row, job, stem, console))
    write_json(Path(f"{stem}.json"), {**summary.as_dict(), "command": command})
    write_text(Path(f"{stem}.md"), markdown(summary))
    write_text(Path(f"{stem}.csv"), as_csv(summary))
    console.print()
    console.print(terminal(summary))
    pictures = f", {', '.join(summary.pictures)}" if summary.pictures else ""
    console.print(f"written  {stem}.json, .md and .csv{pictures}", highlight=False, soft_wrap=True)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")


def _pictures(study: Study, row: str, job: Job, stem: Path, console: Console) -> list[str]:
    """Draw what a study shows of a run; names of the files. One that cannot be drawn does not stop the rest."""
    drawn = []
    for kind in study.pictures:
        for suffix in FORMATS:
            about = re.sub(r"[^\w.]+", "_", row)
            out = Path(f"{stem}-{kind}-{about}-seed{job.seed}{suffix}")
            try:
                given = [override_of("run", job.folder), override_of("out", out), f"count={IMAGES}"]
                picture(kind, given, Console(quiet=True))
            except UserError as error:
                console.print(f"no picture {out}: {error}", highlight=False, markup=False, soft_wrap=True)
                continue
            drawn.append(out.name)
    return drawn
