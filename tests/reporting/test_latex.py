"""The LaTeX table: what LaTeX would misread is escaped, and the numbers are those of the comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_toolkit.reporting.compare import compare
from ssl_toolkit.reporting.latex import escape, latex
from tests.reporting.synthetic_runs import make_run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpha_0.5 & 50%", r"alpha\_0.5 \& 50\%"),
        ("a\\b", r"a\textbackslash{}b"),
        ("{~^#$}", r"\{\textasciitilde{}\textasciicircum{}\#\$\}"),
        ("plain", "plain"),
    ],
)
def test_escaping(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_row_for_each_run_with_the_best_in_bold(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a_1", "vicreg", 63.2, 24.4), make_run(tmp_path / "b&c", "vicregl", 70.7, 32.8)]
    comparison = compare(paths)
    lines = latex(comparison).splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert all(line.replace(r"\&", "").count("&") == len(comparison.metrics) for line in rows)
    assert rows[1].startswith(r"a\_1 & ")
    assert rows[2].startswith(r"b\&c & ")
    assert r"\textbf{32.8} (+8.4)" in rows[2]
    assert "24.4 &" in rows[1]
    assert lines[1] == r"\begin{tabular}{l" + "r" * len(comparison.metrics) + "}"
    assert all(line.startswith(("%", "\\")) or line.endswith(r"\\") for line in lines)
    assert any(line.startswith("% method.name: ") for line in lines)
