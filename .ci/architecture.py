"""Draws which part of the package imports which: ``python .ci/architecture.py`` writes docs/architecture.{md,svg} anew.

Only the part of the page between its two marks is written. ``--check`` writes nothing and fails where either is not
current.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"
START, END = "<!-- made by .ci/architecture.py -->", "<!-- end -->"

PACKAGE = "ssl_toolkit"
TOP = ("methods", "zoo")
"""Folders at the top that are installed inside of the package."""

CORE = {
    "config", "errors", "files", "hardware", "json_output", "own_experiment", "progress", "registry",
}  # fmt: skip
JOINING = {"__init__", "loading", "sources"}
RUNNING = {"commands", "demo", "eval_commands", "slurm_commands"}
"""Modules of ssl_toolkit/ itself: those that everything may use, those that open a backbone by any of its names, and
those that start trainings and evaluations. All others are commands."""

COMMANDS, CORE_NAME, SOURCES, RUNS = "commands", "core", "sources", "running"
Edges = dict[str, dict[str, set[str]]]
"""Part to the parts that it imports, with the files that do."""


def part_of(module: str) -> str:
    """The part that a dotted module belongs to: ``ssl_toolkit.training.fit`` to ``training``."""
    names = module.split(".")
    if len(names) == 1:
        return CORE_NAME
    name = names[1]
    if (ROOT / PACKAGE / name).is_dir() or name in TOP:
        return name
    if name in JOINING:
        return SOURCES
    if name in CORE or name.startswith("__"):  # __version__
        return CORE_NAME
    return RUNS if name in RUNNING else COMMANDS


def sources() -> Iterator[tuple[Path, str]]:
    """Every module of the package: its file and its dotted name."""
    for top, prefix in ((PACKAGE, PACKAGE), *((name, f"{PACKAGE}.{name}") for name in TOP)):
        for path in sorted((ROOT / top).rglob("*.py")):
            names = path.relative_to(ROOT / top).with_suffix("").parts
            yield path, ".".join((prefix, *names))


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported, in functions too, but not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            alone = node.module == PACKAGE  # from ssl_toolkit import training
            yield from (f"{PACKAGE}.{alias.name}" for alias in node.names) if alone else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        yield from imports(node)


def graph() -> Edges:
    """Which part imports which."""
    edges: Edges = {}
    for path, module in sources():
        part = part_of(module)
        edges.setdefault(part, {})
        for imported in imports(ast.parse(path.read_text(encoding="utf-8"))):
            other = part_of(imported)
            if other != part:
                edges[part].setdefault(other, set()).add(path.relative_to(ROOT).as_posix())
    return edges


def cycles(edges: Edges) -> list[list[str]]:
    """Parts that import each other, by whatever way round; empty where dependencies point one way."""
    reach = {part: reachable(edges, part) for part in edges}
    return sorted(map(list, {tuple(sorted(o for o in reach[p] if p in reach[o])) for p in edges if p in reach[p]}))


def reachable(edges: Edges, part: str) -> set[str]:
    """All parts that a part imports, directly or not; with itself where it is in a cycle."""
    seen: set[str] = set()
    waiting = list(edges[part])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += edges[other]
    return seen


def levels(edges: Edges) -> dict[str, int]:
    """How many imports lie between a part and ``core``, by the longest way."""
    known: dict[str, int] = {}

    def level(part: str) -> int:
        if part not in known:
            known[part] = 1 + max((level(other) for other in edges[part]), default=-1)
        return known[part]

    for part in edges:
        level(part)
    return known


def direct(edges: Edges) -> list[tuple[str, str]]:
    """Imports that no longer way implies: those that are drawn."""
    found = []
    for part, others in edges.items():
        found += [(part, o) for o in others if not any(o in reachable(edges, via) for via in others if via != o)]
    return sorted(found)


BOX, LANE, GAP, ROW, MARGIN, SWEEPS = (112, 34), 14, 18, 84, 20, 12
Slot = tuple[str, str, int]
"""A place in a row: ``(part, "", 0)``, or a lane for the arrow ``(part, other)`` that passes by that row."""


def rows_of(edges: Edges) -> list[list[Slot]]:
    """Parts by level, and a lane in every row that an arrow passes; ordered so that few arrows cross."""
    level, drawn = levels(edges), direct(edges)
    rows: list[list[Slot]] = [[] for _ in range(max(level.values()) + 1)]
    for part in sorted(level):
        rows[level[part]].append((part, "", 0))
    for part, other in drawn:
        for number in range(level[other] + 1, level[part]):
            rows[number].append((part, other, number))

    for sweep in range(SWEEPS):
        above = sweep % 2 == 0
        for number in range(len(rows) - 2, -1, -1) if above else range(1, len(rows)):
            beside = rows[number + 1] if above else rows[number - 1]
            rows[number] = _ordered(rows[number], beside, drawn)
    return rows


def _ordered(row: list[Slot], beside: list[Slot], drawn: list[tuple[str, str]]) -> list[Slot]:
    """A row by the mean place of what each slot is joined with in the row beside it."""
    mean = {}
    for i, slot in enumerate(row):
        mine = [edge for edge in drawn if slot[:2] == edge or (not slot[1] and slot[0] in edge)]
        near = [
            k / max(1, len(beside) - 1)
            for k, other in enumerate(beside)
            if any(other[:2] == edge or (not other[1] and other[0] in edge) for edge in mine)
        ]
        mean[slot] = sum(near) / len(near) if near else i / max(1, len(row) - 1)
    return sorted(row, key=lambda slot: (mean[slot], row.index(slot)))


def places(rows: list[list[Slot]]) -> tuple[dict[Slot, tuple[float, float]], int, int]:
    """The middle of the upper side of each slot, the highest level at the top, and the size of the picture."""
    widths = [sum((LANE if slot[1] else BOX[0]) + GAP for slot in row) - GAP for row in rows]
    width = max(widths) + 2 * MARGIN
    middles = {}
    for number, row in enumerate(rows):
        left = (width - widths[number]) / 2
        for slot in row:
            size = LANE if slot[1] else BOX[0]
            middles[slot] = (left + size / 2, MARGIN + (len(rows) - 1 - number) * ROW)
            left += size + GAP
    return middles, int(width), MARGIN * 2 + (len(rows) - 1) * ROW + BOX[1]


def _arrow(part: str, other: str, middles: dict[Slot, tuple[float, float]]) -> str:
    """The path of an arrow, straight through its lanes and bent between rows."""
    lanes = sorted((y, x) for slot, (x, y) in middles.items() if slot[:2] == (part, other))
    (x, y), (x_end, y_end) = middles[part, "", 0], middles[other, "", 0]
    path, y = f"M{x:g} {y + BOX[1]:g}", y + BOX[1]
    for top, lane in [*lanes, (y_end, x_end)]:
        bend = (top - y) / 2
        path += f"C{x:g} {y + bend:g} {lane:g} {top - bend:g} {lane:g} {top:g}"
        x, y = lane, top
        if (top, lane) in lanes:
            y = top + BOX[1]
            path += f"V{y:g}"
    return f'<path d="{path}" fill="none" stroke="#5c6b7a" stroke-width="1.2" marker-end="url(#tip)"/>'


def svg(edges: Edges) -> str:
    """The picture: a box for each part, an arrow for each direct import."""
    middles, width, height = places(rows_of(edges))
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        "<title>Which part of ssl-toolkit imports which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5c6b7a"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_arrow(part, other, middles) for part, other in direct(edges)),
    ]
    for (part, other, _), (x, y) in sorted(middles.items()):
        if other:
            continue
        fill = "#e8f0f8" if part in TOP else "#f4f1e8" if part in (COMMANDS, CORE_NAME, SOURCES, RUNS) else "#edf5ea"
        drawn.append(
            f'<rect x="{x - BOX[0] / 2:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="5" fill="{fill}" '
            f'stroke="#5c6b7a"/><text x="{x:g}" y="{y + 22:g}" text-anchor="middle" fill="#1c2530">'
            f"{escape(part)}</text>"
        )
    return "\n".join([*drawn, "</svg>"]) + "\n"


def table(edges: Edges) -> str:
    """All imports as Markdown, the highest level first."""
    level = levels(edges)
    rows = ["| part | imports | is imported by |", "|---|---|---|"]
    for part in sorted(edges, key=lambda p: (-level[p], p)):
        used = ", ".join(sorted(other for other in edges[part] if other != CORE_NAME)) or "no other"
        users = sorted(other for other in edges if part in edges[other])
        by = "all" if len(users) == len(edges) - 1 else ", ".join(users) or "no other"
        rows.append(f"| `{part}` | {used} | {by} |")
    return "\n".join(rows)


def page(text: str, edges: Edges) -> str:
    """``text`` with the part between the marks made anew."""
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE} must have the lines {START} and {END}")
    return f"{before}{START}\n\n{table(edges)}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page and the picture; with ``--check``, say which is not current."""
    edges = graph()
    if found := cycles(edges):
        print(f"parts import each other: {found}")
        return 1
    stale = []
    for path, text in ((PICTURE, svg(edges)), (PAGE, page(PAGE.read_text(encoding="utf-8"), edges))):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'not current' if '--check' in arguments else 'written'}: {', '.join(stale)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
