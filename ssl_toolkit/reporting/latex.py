"""A comparison as a LaTeX table."""

from __future__ import annotations

import re

from ssl_toolkit.reporting.compare import Comparison

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """``text`` with what LaTeX would take for commands made plain."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)


def latex(comparison: Comparison) -> str:
    """A ``tabular`` of the numbers, best in bold and differences in brackets, for the package booktabs; below it, as
    comments, what differs between the runs and what a reader should know."""
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(comparison.metrics)}}}",
        "\\toprule",
        " & ".join(["run", *(escape(metric.title) for metric in comparison.metrics)]) + r" \\",
        "\\midrule",
    ]
    for i, label in enumerate(comparison.labels):
        cells = [escape(label)]
        for j in range(len(comparison.metrics)):
            value, delta = comparison.cell(i, j)
            value = f"\\textbf{{{value}}}" if comparison.best[i, j] else value or "--"
            cells.append(f"{value} ({delta})" if delta else value)
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    for key, values in comparison.details().items():
        lines.append(f"% {key}: {'; '.join(values)}")
    return "\n".join([*lines, *(f"% {note}" for note in comparison.notes)]) + "\n"
