"""``ssl-toolkit runs``, ``compare`` and ``report``: what run folders hold, without torch."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ssl_toolkit.files import write_text
from ssl_toolkit.json_output import Emit
from ssl_toolkit.reporting.compare import Comparison
from ssl_toolkit.reporting.compare import compare as compare_runs
from ssl_toolkit.reporting.latex import latex as as_latex
from ssl_toolkit.reporting.listing import Listed, list_runs, runs_csv, runs_table


def runs(folder: str, csv: str | None, console: Console, emit: Emit | None = None) -> int:
    """``ssl-toolkit runs``: what runs there are below a folder."""
    root = Path(folder)
    found = list_runs(root)
    if emit is None:
        console.print(runs_table(found, root))
    else:
        emit([_listed(run) for run in found])
    if csv:
        write_text(Path(csv), runs_csv(found, root))
        console.print(f"written  {csv}", highlight=False, soft_wrap=True)
    return 0


def _listed(run: Listed) -> dict[str, Any]:
    changed = datetime.datetime.fromtimestamp(run.changed, datetime.timezone.utc)
    return {**vars(run), "changed": changed.isoformat(timespec="seconds")}


def compare(
    runs: Sequence[str],
    html: str | None,
    csv: str | None,
    markdown: str | None,
    latex: str | None,
    console: Console,
    emit: Emit | None = None,
) -> int:
    """``ssl-toolkit compare``: a table of results and of what differs in the configs."""
    comparison = compare_runs(runs)
    if emit is None:
        comparison.print(console)
    else:
        emit(_compared(comparison))
    if csv:
        comparison.write_csv(Path(csv))
    if markdown:
        comparison.write_markdown(Path(markdown))
    if latex:
        write_text(Path(latex), as_latex(comparison))
    if html:
        from ssl_toolkit.reporting.report import write_comparison_report  # brings matplotlib

        write_comparison_report([Path(run) for run in runs], Path(html), "Comparison of runs", "")
    for path in filter(None, (csv, markdown, latex, html)):
        console.print(f"written  {path}", highlight=False, soft_wrap=True)
    return 0


def _compared(comparison: Comparison) -> dict[str, Any]:
    details = comparison.details()
    described = []
    for i, run in enumerate(comparison.runs):
        metrics = [
            {**vars(metric), "value": comparison.values[i, j], "difference": comparison.deltas[i, j]}
            for j, metric in enumerate(comparison.metrics)
        ]
        options = {key: cells[i] for key, cells in details.items()}
        described.append({"run": comparison.labels[i], "path": run.path, "metrics": metrics, "options": options})
    return {"runs": described, "notes": comparison.notes}


def report(run: str, console: Console) -> int:
    """``ssl-toolkit report``: rebuild the report of a run from its files."""
    from ssl_toolkit.reporting.report import write_report  # brings matplotlib

    console.print(f"report   {write_report(Path(run))}", highlight=False, soft_wrap=True)
    return 0
