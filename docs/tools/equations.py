"""Equations as MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_SPAN = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def with_equations(page: str) -> str:
    """HTML with each equation that ``pymdownx.arithmatex`` marked converted.

    Raises:
        ValueError: an equation with a command that the converter does not know.
    """
    return _SPAN.sub(lambda found: _equation(html.unescape(found[3]).strip(), found[2] == "["), page)


def _equation(latex: str, block: bool) -> str:
    """One equation; the source is kept for readers of the text (``alttext``)."""
    found = convert(latex, display="block" if block else "inline")
    shown = re.sub(r"<[^>]*>", "", found)
    if "\\" in shown or re.search(r"&(?!#?\w+;)", shown):
        raise ValueError(f"the equation {latex!r} has a command that latex2mathml does not know")
    # the bars of a norm are not parentheses: they stay as high as a letter
    found = found.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')
    found = found.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)
    return f'<div class="equation">{found}</div>' if block else f'<span class="inline-equation">{found}</span>'
