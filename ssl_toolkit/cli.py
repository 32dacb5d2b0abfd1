"""The command line: ``ssl-toolkit <command> [key=value ...]``."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

from ssl_toolkit.errors import Terminated, UserError

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

COMPLETE = "__complete"
"""What the shells' completion calls: ``ssl-toolkit __complete SHELL LINE``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the status that `ssl_toolkit.cli_texts.EXITS` explains."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [COMPLETE]:
        from ssl_toolkit.completion import answer

        return answer(argv[1:])
    try:
        return _run(argv)
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        _tell(f"[bold red]error:[/bold red] {_escape(str(error))}")
        return _left(EXIT_USER_ERROR)
    except KeyboardInterrupt as stopped:
        _tell(_escape(str(stopped)) or "interrupted")
        return _left(EXIT_TERMINATED if isinstance(stopped, Terminated) else EXIT_INTERRUPTED)
    except BrokenPipeError:  # what reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _left(EXIT_FAULT)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            if "--debug" in argv:
                traceback.print_exc()
            _tell(f"[bold red]error:[/bold red] {_escape(_out_of_memory(error))}")
            return _left(EXIT_FAULT)
        if _tells():
            raise
        return _left(EXIT_FAULT)


def _run(argv: Sequence[str]) -> int:
    # Imported here so that a shell's completion answers at once.
    from ssl_toolkit.cli_parser import build_parser, parse_arguments

    if not argv:
        build_parser().print_help()
        return 0
    return _dispatch(parse_arguments(argv))


def _dispatch(args: Namespace) -> int:
    from rich.console import Console

    from ssl_toolkit.cli_actions import ACTIONS
    from ssl_toolkit.json_output import json_only

    action = ACTIONS[args.command]
    if not getattr(args, "json", False):
        return action(args, Console(), None)
    with json_only() as emit:
        return action(args, Console(stderr=True), emit)


def _out_of_memory(error: Exception) -> str:
    said = str(error).split(". ")[0]
    return (
        f"the GPU's memory is full ({said}): lower trainer.batch_size (of evaluations: batch_size), or pass the batch "
        "in parts by trainer.accumulate"
    )


def _tells() -> bool:
    """Whether this process says what went wrong; of many that torchrun started, the first to ask does."""
    if "ssl_toolkit.training" not in sys.modules:
        return True
    from ssl_toolkit.processes.world import first_to_tell

    return first_to_tell()


def _tell(line: str) -> None:
    """Print a line with markup on standard error."""
    if _tells():
        from rich.console import Console

        Console(stderr=True).print(line, highlight=False, soft_wrap=True)


def _left(status: int) -> int:
    """``status``; a process among others ends here, since on its way out NCCL could wait for them for ever."""
    if "ssl_toolkit.training" in sys.modules:
        from ssl_toolkit.criteria.distributed import world_size

        if world_size() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


if __name__ == "__main__":
    sys.exit(main())
