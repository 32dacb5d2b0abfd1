"""``ssl-toolkit reproduce``: a table of the paper, run and put beside the paper's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ssl_toolkit.config import parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import write_json, write_text
from ssl_toolkit.registry import typed
from ssl_toolkit.reproduction import read_study, study_names
from ssl_toolkit.reproduction.jobs import ReproduceConfig, check_options, plan, run_jobs
from ssl_toolkit.reproduction.summary import as_csv, markdown, summarise, terminal


def reproduce(names: str, overrides: Sequence[str], console: Console) -> int:
    """Train and evaluate the runs of studies, and write each one's table.

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
    failed = run_jobs(jobs, options, console)
    for study in studies:
        summary = summarise(study, jobs, options.scale, options.seeds, {str(k): v for k, v in failed.items()})
        stem = Path(options.out) / f"{study.name}-{options.scale}"
        write_json(stem.with_suffix(".json"), {**summary.as_dict(), "command": _command(names, overrides)})
        write_text(stem.with_suffix(".md"), markdown(summary))
        write_text(stem.with_suffix(".csv"), as_csv(summary))
        console.print()
        console.print(terminal(summary))
        console.print(f"written  {stem}.json, .md and .csv", highlight=False, soft_wrap=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again")
    return 0


def _command(names: str, overrides: Sequence[str]) -> str:
    return " ".join(["ssl-toolkit reproduce", names, *overrides])
