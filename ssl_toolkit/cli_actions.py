"""Command to function. Each imports what it needs when it is called, so that the others answer at once."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from rich.console import Console

from ssl_toolkit.json_output import Emit


def _demo(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.commands import demo

    return demo(args.overrides, console)


def _init(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.init_commands import init

    return init(args.file, args.images, console)


def _pretrain(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.commands import pretrain

    return pretrain(args.overrides, args.multirun, console)


def _replay(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.commands import replay

    return replay(args.file, console)


def _eval(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.eval_commands import evaluate

    return evaluate(args.protocols, args.overrides, console, emit)


def _picture(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.picture_commands import picture

    return picture(args.kind, args.overrides, console)


def _reproduce(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.reproduce_commands import reproduce

    return reproduce(args.studies, args.overrides, console)


def _runs(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.compare_commands import runs

    return runs(args.folder, args.csv, console, emit)


def _compare(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.compare_commands import compare

    return compare(args.runs, args.html, args.csv, args.markdown, args.latex, console, emit)


def _report(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.compare_commands import report

    return report(args.run, console)


def _data(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.data_commands import data

    return data(args.action, args.arguments, console, emit)


def _zoo(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.zoo_commands import zoo

    return zoo(args.action, args.arguments, console, emit)


def _export(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.export_commands import export

    return export(args.words, args.checkpoint, args.out, console)


def _embed(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.embed_commands import embed

    return embed(args.images, args.overrides, args.out, console)


def _doctor(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.doctor_commands import doctor

    return doctor(args.paths, console, emit)


def _bench(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.commands import bench

    return bench(args.suite, args.overrides, console)


def _completion(args: Namespace, console: Console, emit: Emit | None) -> int:
    from ssl_toolkit.completion import completion

    return completion(args.shell)


ACTIONS: dict[str, Callable[[Namespace, Console, Emit | None], int]] = {
    "demo": _demo,
    "init": _init,
    "pretrain": _pretrain,
    "replay": _replay,
    "eval": _eval,
    "picture": _picture,
    "reproduce": _reproduce,
    "runs": _runs,
    "compare": _compare,
    "report": _report,
    "data": _data,
    "zoo": _zoo,
    "export": _export,
    "embed": _embed,
    "doctor": _doctor,
    "bench": _bench,
    "completion": _completion,
}
