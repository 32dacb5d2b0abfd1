"""``ssl-toolkit doctor``: what this machine has, what will be used, and what is broken."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ssl_toolkit import doctor_checks
from ssl_toolkit.doctor_checks import BROKEN, NOTE, Finding
from ssl_toolkit.json_output import Emit

USED = {"device": "device", "precision": "precision", "view engine": "view_engine"}
"""Findings that say what ``auto`` means here, and their names as JSON."""

STYLES = {BROKEN: "bold red", NOTE: "yellow"}


def doctor(paths: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """Look at everything, print it, and say what to do.

    Args:
        paths: folders and lists of images to look at as well.

    Returns:
        0, or 1 where something is broken.
    """
    found: list[Finding] = []
    with console.status("looking at this machine"):
        for part in (doctor_checks.packages, doctor_checks.machine, doctor_checks.compute):
            found.extend(part())
        found.extend(doctor_checks.data(path) for path in paths)
    broken = [each for each in found if each.status == BROKEN]
    if emit is not None:
        uses = {USED[each.name]: each.value for each in found if each.part == "compute" and each.name in USED}
        emit({"healthy": not broken, "uses": uses, "findings": found})
        return 1 if broken else 0
    _print(found, console)
    words = ", ".join(each.name for each in broken)
    console.print(
        f"\n{len(broken)} broken: {words}" if broken else "\nnothing is broken", highlight=False, markup=False
    )
    return 1 if broken else 0


def _print(found: Sequence[Finding], console: Console) -> None:
    width = max(len(each.name) for each in found if each.part != "data")
    part = ""
    for each in found:
        if each.part != part:
            part = each.part
            console.print(Text(part, style="bold"))
        line = Text(f"  {each.name:{width}}  ")
        line.append(f"{each.status}: " if each.status in STYLES else "", style=STYLES.get(each.status, ""))
        line.append(each.value)
        console.print(line, soft_wrap=True)
        if each.advice:
            console.print(Text(f"  {'':{width}}  {each.advice}", style="dim"), soft_wrap=True)
