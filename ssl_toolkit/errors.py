"""Errors a user can mend, and how they are worded."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the file, key or shape and says what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Terminated(KeyboardInterrupt):
    """Stopped by SIGTERM, as schedulers do, after everything was put away; the command line exits with 143."""


def nearest(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """``"did you mean 'a' or 'b'?"`` where something is close, else the list of what is valid."""
    known = sorted(map(str, choices))
    close = difflib.get_close_matches(str(name), known, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
    return f"valid: {shown}" if known else "there is none"


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that no registry or config knows, with the nearest valid ones."""
    return UserError(f"unknown {kind} {name!r}: {nearest(name, choices)}")
