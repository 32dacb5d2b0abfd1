"""The command line: ``ssl-toolkit <command> [key=value ...]``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from ssl_toolkit import __version__
from ssl_toolkit.errors import Terminated, UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

PROTOCOLS = (
    "knn, linear, linear_augmented, finetune, segmentation, segmentation_augmented, detection, detection_finetune, "
    "matching, spectrum, clustering"
)
"""Of ``eval``: written out, so that --help answers at once."""

SUITES = "criterion, step, train, views, knn, linear, scaling"
"""Of ``bench``, for the same reason."""

OVERRIDES = {
    "pretrain": "groups and keys of configs/pretrain.yaml",
    "eval": "groups and keys of configs/eval.yaml",
    "reproduce": "keys of configs/reproduce.yaml; others go to every run",
    "picture": "groups and keys of configs/picture.yaml",
    "bench": "keys of configs/bench_<suite>.yaml",
    "demo": "keys of configs/pretrain.yaml, for both methods",
}
"""Commands that take ``key=value``, and of what."""

COMMANDS = {
    "pretrain": (
        "train a backbone without labels",
        "ssl-toolkit pretrain experiment=digits_vicregl\n"
        "  ssl-toolkit pretrain method=simclr_l backbone=resnet18 data=folder data.root=photos trainer.epochs=50\n"
        "  ssl-toolkit pretrain -m experiment=digits_vicregl seed=0,1,2\n"
        "  ssl-toolkit pretrain run=runs/NAME                  (resume a stopped run)\n"
        "  ssl-toolkit pretrain init=runs/NAME                 (a new run from its weights)",
    ),
    "export": (
        "write the backbone of a run as safetensors",
        "ssl-toolkit export runs/NAME                        (of its last checkpoint, finished or not)\n"
        "  ssl-toolkit export runs/NAME --checkpoint best --out backbone.safetensors",
    ),
    "eval": (
        "measure a backbone: classification, segmentation, detection, local features",
        "ssl-toolkit eval knn,linear,segmentation run=runs/NAME\n"
        "  ssl-toolkit eval matching,spectrum,clustering run=runs/NAME\n"
        "  ssl-toolkit eval linear_augmented zoo=vicregl_resnet50_alpha0p9 data=imagenet data.root=/data/imagenet\n"
        "  ssl-toolkit eval knn checkpoint=backbone.safetensors data=folder data.root=photos",
    ),
    "data": (
        "look at data before training on it: check, preview",
        "ssl-toolkit data check photos                (what is there, what is broken, a clean list)\n"
        "  ssl-toolkit data check train.txt workers=8 out=clean.txt\n"
        "  ssl-toolkit data preview data=folder data.root=photos views=vicregl_multicrop out=views.png",
    ),
    "replay": (
        "do a step that had no finite loss again, and see where it broke",
        "ssl-toolkit replay runs/NAME/failures/step-000123.pt",
    ),
    "reproduce": (
        "the paper's ablations: train, evaluate, and show them beside the paper's numbers",
        "ssl-toolkit reproduce table3                        (digit scenes, three seeds, on a CPU)\n"
        "  ssl-toolkit reproduce table3,table4 seeds=[0] trainer.epochs=2\n"
        "  ssl-toolkit reproduce table3 scale=paper imagenet=/data/imagenet voc=/data/VOCdevkit",
    ),
    "picture": (
        "draw what a backbone sees: matches, pca, similarity, map",
        "ssl-toolkit picture matches run=runs/NAME\n"
        "  ssl-toolkit picture pca run=runs/NAME images=[cat.jpg,dog.jpg] size=448\n"
        "  ssl-toolkit picture similarity run=runs/NAME point=[0.3,0.6] out=similarity.svg\n"
        "  ssl-toolkit picture map run=runs/NAME",
    ),
    "runs": (
        "list runs, how far they are and their best numbers",
        "ssl-toolkit runs                                    (everything below runs/)\n"
        "  ssl-toolkit runs runs/sweep --csv runs.csv",
    ),
    "compare": (
        "results of several runs side by side",
        "ssl-toolkit compare runs/A runs/B --html compare.html",
    ),
    "report": ("write report.html of a run", "ssl-toolkit report runs/NAME"),
    "bench": (
        "time our losses, training steps, trainings, views, kNN and linear probes against others'",
        "ssl-toolkit bench criterion\n"
        "  ssl-toolkit bench criterion cases=A,nt_xent contenders=lightly rounds=10\n"
        "  ssl-toolkit bench step backbone=resnet50 batch_size=32\n"
        "  ssl-toolkit bench train cases=resnet18\n"
        "  ssl-toolkit bench views recipes=vicreg workers=4\n"
        "  ssl-toolkit bench knn ks=20,200\n"
        "  ssl-toolkit bench linear\n"
        "  ssl-toolkit bench scaling worlds=8,64,512",
    ),
    "demo": (
        "VICReg against VICRegL on embedded data, in minutes on a CPU",
        "ssl-toolkit demo",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssl-toolkit",
        description="Self-supervised visual features that are good globally and locally.",
        epilog="Try: ssl-toolkit demo",
    )
    parser.add_argument("--version", action="version", version=f"ssl-toolkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    subparsers = {}
    for name, (summary, examples) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n  {examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparsers[name] = sub
    _add_arguments(subparsers)
    for name, what in OVERRIDES.items():
        subparsers[name].add_argument("overrides", nargs="*", metavar="key=value", help=what)
    return parser


def _add_arguments(subparsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """What each command takes besides overrides."""
    subparsers["pretrain"].add_argument(
        "-m", "--multirun", action="store_true", help="one run per combination of values (seed=0,1,2)"
    )
    subparsers["export"].add_argument("run", metavar="RUN", help="run folder")
    subparsers["export"].add_argument("--out", metavar="FILE", help="RUN/backbone-CHECKPOINT.safetensors by default")
    subparsers["export"].add_argument("--checkpoint", default="last", metavar="NAME", help="last, best or epoch-0010")
    subparsers["eval"].add_argument("protocols", help=f"comma-separated, of {PROTOCOLS}")
    subparsers["data"].add_argument(
        "action",
        nargs="?",
        help="check: status 0 where all images are fine, 1 where some are unreadable or lie in two splits; preview",
    )
    subparsers["data"].add_argument(
        "arguments",
        nargs="*",
        metavar="PATH or key=value",
        help="a folder or list to check; keys of configs/data_check.yaml, groups and keys of configs/data_preview.yaml",
    )
    subparsers["reproduce"].add_argument("studies", help="comma-separated: table3, table4, ..., or all")
    subparsers["picture"].add_argument("kind", help="matches, pca, similarity or map")
    subparsers["runs"].add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="runs by default")
    subparsers["runs"].add_argument("--csv", metavar="FILE", help="also write the list as CSV")
    subparsers["compare"].add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    subparsers["compare"].add_argument("--html", metavar="FILE", help="also write a self-contained page")
    for kind in ("csv", "markdown", "latex"):
        subparsers["compare"].add_argument(f"--{kind}", metavar="FILE", help=f"also write the table as {kind}")
    subparsers["report"].add_argument("run", metavar="RUN", help="run folder")
    subparsers["replay"].add_argument("file", metavar="FILE", help="a failed step of a run")
    subparsers["bench"].add_argument("suite", help=f"of {SUITES}")


def _dispatch(args: argparse.Namespace, console: Console) -> int:
    # Imported here so that --help and --version answer at once.
    from ssl_toolkit import commands, data_commands, eval_commands, picture_commands, reproduce_commands

    actions: dict[str, Callable[[], int]] = {
        "pretrain": lambda: commands.pretrain(args.overrides, args.multirun, console),
        "export": lambda: commands.export(args.run, args.checkpoint, args.out, console),
        "eval": lambda: eval_commands.evaluate(args.protocols, args.overrides, console),
        "data": lambda: data_commands.data(args.action, args.arguments, console),
        "replay": lambda: commands.replay(args.file, console),
        "reproduce": lambda: reproduce_commands.reproduce(args.studies, args.overrides, console),
        "picture": lambda: picture_commands.picture(args.kind, args.overrides, console),
        "runs": lambda: commands.runs(args.folder, args.csv, console),
        "compare": lambda: commands.compare(args.runs, args.html, args.csv, args.markdown, args.latex, console),
        "report": lambda: commands.report(args.run, console),
        "bench": lambda: commands.bench(args.suite, args.overrides, console),
        "demo": lambda: commands.demo(args.overrides, console),
    }
    return actions[args.command]()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 where ``data check`` found fault, 2 for bad input (one line on stderr), 130 when
    interrupted, 143 when terminated."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    console, errors = Console(), Console(stderr=True)
    try:
        return _dispatch(args, console)
    except UserError as error:
        if args.debug:
            traceback.print_exc()
        if _tells():
            errors.print(f"[bold red]error:[/bold red] {_escape(str(error))}", highlight=False, soft_wrap=True)
        return _left(EXIT_USER_ERROR)
    except KeyboardInterrupt as stopped:
        if _tells():
            errors.print(str(stopped) or "interrupted", highlight=False, markup=False, soft_wrap=True)
        return _left(EXIT_TERMINATED if isinstance(stopped, Terminated) else EXIT_INTERRUPTED)
    except Exception:
        if _tells():
            raise
        return _left(1)


def _tells() -> bool:
    """Whether this process says what went wrong; of many that torchrun started, the first to ask does."""
    if "ssl_toolkit.training" not in sys.modules:
        return True
    from ssl_toolkit.processes.world import first_to_tell

    return first_to_tell()


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
