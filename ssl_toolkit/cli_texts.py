"""What each command is: its task, one line, and examples."""

from __future__ import annotations

from typing import NamedTuple

PROTOCOLS = (
    "knn",
    "linear",
    "linear_augmented",
    "finetune",
    "segmentation",
    "segmentation_augmented",
    "detection",
    "detection_finetune",
    "matching",
    "match_rules",
    "spectrum",
    "clustering",
)
"""Of ``eval``: written out, so that --help answers at once."""

SUITES = ("criterion", "step", "train", "views", "knn", "linear", "scaling")
"""Of ``bench``, for the same reason, as what follows."""

PICTURES = ("matches", "pca", "similarity", "map")
DATA_ACTIONS = ("check", "preview")
ZOO_ACTIONS = ("list", "show", "download", "evaluate")
SHELLS = ("bash", "zsh", "fish")

EXITS = {
    0: "done",
    1: "data check or doctor found a fault; or the program itself failed",
    2: "bad input: one line on standard error says what to do",
    130: "interrupted (Ctrl+C); what was done is kept",
    143: "terminated (SIGTERM), likewise",
}
"""Statuses that commands end with."""


class Command(NamedTuple):
    """One command.

    Attributes:
        task: the heading it stands below.
        summary: one line.
        examples: lines to copy.
    """

    task: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "demo": Command(
        "train",
        "VICReg against VICRegL on embedded data, in minutes on a CPU",
        ("ssl-toolkit demo", "ssl-toolkit demo trainer.epochs=1              (a quick look)"),
    ),
    "init": Command(
        "train",
        "write a commented config to start from, for your own images",
        (
            "ssl-toolkit init                               (experiment.yaml, here)",
            "ssl-toolkit init photos.yaml --images photos",
            "ssl-toolkit pretrain experiment=photos.yaml    (and train with it)",
        ),
    ),
    "pretrain": Command(
        "train",
        "train a backbone without labels",
        (
            "ssl-toolkit pretrain experiment=digits_vicregl",
            "ssl-toolkit pretrain method=simclr_l backbone=resnet18 data=folder data.root=photos trainer.epochs=50",
            "ssl-toolkit pretrain experiment=photos.yaml trainer.devices=4      (a file: see ssl-toolkit init)",
            "ssl-toolkit pretrain -m experiment=digits_vicregl seed=0,1,2",
            "ssl-toolkit pretrain run=runs/NAME                  (resume a stopped run)",
            "ssl-toolkit pretrain init=runs/NAME                 (a new run from its weights)",
        ),
    ),
    "replay": Command(
        "train",
        "do a step that had no finite loss again, and see where it broke",
        ("ssl-toolkit replay runs/NAME/failures/step-000123.pt",),
    ),
    "eval": Command(
        "evaluate",
        "measure a backbone: classification, segmentation, detection, local features",
        (
            "ssl-toolkit eval knn,linear,segmentation run=runs/NAME",
            "ssl-toolkit eval matching,match_rules,spectrum,clustering run=runs/NAME",
            "ssl-toolkit eval linear_augmented zoo=vicregl_resnet50_alpha0p9 data=imagenet data.root=/data/imagenet",
            "ssl-toolkit eval knn checkpoint=backbone.safetensors data=folder data.root=photos",
            "ssl-toolkit eval knn run=runs/NAME --json           (for a program)",
        ),
    ),
    "picture": Command(
        "evaluate",
        "draw what a backbone sees: matches, pca, similarity, map",
        (
            "ssl-toolkit picture matches run=runs/NAME",
            "ssl-toolkit picture pca run=runs/NAME images=[cat.jpg,dog.jpg] size=448",
            "ssl-toolkit picture similarity run=runs/NAME out=similarity.html    (a page to click in)",
            "ssl-toolkit picture map run=runs/NAME",
        ),
    ),
    "reproduce": Command(
        "evaluate",
        "the paper's ablations: train, evaluate, and show them beside the paper's numbers",
        (
            "ssl-toolkit reproduce table3                        (digit scenes, three seeds, on a CPU)",
            "ssl-toolkit reproduce table3,table4 seeds=[0] trainer.epochs=2",
            "ssl-toolkit reproduce table3 scale=paper imagenet=/data/imagenet voc=/data/VOCdevkit",
            "ssl-toolkit reproduce all scale=paper imagenet=/data/imagenet voc=/data/VOCdevkit launcher=slurm "
            "trainer.devices=8",
        ),
    ),
    "runs": Command(
        "compare",
        "list runs, how far they are and their best numbers",
        (
            "ssl-toolkit runs                                    (everything below runs/)",
            "ssl-toolkit runs runs/sweep --csv runs.csv",
            "ssl-toolkit runs --json                             (for a program)",
        ),
    ),
    "compare": Command(
        "compare",
        "results of several runs side by side",
        ("ssl-toolkit compare runs/A runs/B --html compare.html", "ssl-toolkit compare runs/A runs/B --json"),
    ),
    "report": Command("compare", "write report.html of a run", ("ssl-toolkit report runs/NAME",)),
    "data": Command(
        "data",
        "look at data before training on it: check, preview",
        (
            "ssl-toolkit data check photos                (what is there, what is broken, a clean list)",
            "ssl-toolkit data check train.txt workers=8 out=clean.txt",
            "ssl-toolkit data preview data=folder data.root=photos views=vicregl_multicrop out=views.png",
        ),
    ),
    "zoo": Command(
        "models",
        "published checkpoints: list, show, download, evaluate",
        (
            "ssl-toolkit zoo list                                (all of them; zoo list 'vicregl_*' some)",
            "ssl-toolkit zoo show vicregl_resnet50_alpha0p75",
            "ssl-toolkit zoo download vicregl_resnet50_alpha0p75 file=full",
            "ssl-toolkit zoo evaluate 'vicregl_*' data=voc data.root=/data/VOCdevkit",
        ),
    ),
    "export": Command(
        "models",
        "write a backbone: safetensors, timm, torchvision, detectron2, mmdetection, huggingface, onnx, torch_export",
        (
            "ssl-toolkit export runs/NAME                        (of its last checkpoint, finished or not)",
            "ssl-toolkit export runs/NAME --checkpoint best --out backbone.safetensors",
            "ssl-toolkit export run=runs/NAME format=onnx out=backbone.onnx",
            "ssl-toolkit export zoo=vicregl_resnet50_alpha0p75 format=detectron2",
            "ssl-toolkit export run=runs/NAME format=huggingface license=apache-2.0",
        ),
    ),
    "embed": Command(
        "models",
        "write the features of a folder of images as .npz or .parquet",
        (
            "ssl-toolkit embed photos run=runs/NAME --out features.parquet",
            "ssl-toolkit embed 'photos/*.jpg' zoo=vicregl/resnet50-a0.75 out=features.npz local=true",
            "ssl-toolkit embed list.txt checkpoint=backbone.safetensors precision=bf16 workers=8",
        ),
    ),
    "doctor": Command(
        "machine",
        "what this machine has, what will be used, and what is broken",
        ("ssl-toolkit doctor", "ssl-toolkit doctor photos /data/imagenet --json"),
    ),
    "bench": Command(
        "machine",
        "time our losses, training steps, trainings, views, kNN and linear probes against others'",
        (
            "ssl-toolkit bench criterion",
            "ssl-toolkit bench criterion cases=A,nt_xent contenders=lightly rounds=10",
            "ssl-toolkit bench step backbone=resnet50 batch_size=32",
            "ssl-toolkit bench train cases=resnet18",
            "ssl-toolkit bench views recipes=vicreg workers=4",
            "ssl-toolkit bench knn ks=20,200",
            "ssl-toolkit bench linear",
            "ssl-toolkit bench scaling worlds=8,64,512",
        ),
    ),
    "completion": Command(
        "machine",
        "completion of commands, keys and run folders for bash, zsh or fish",
        (
            'source <(ssl-toolkit completion bash)               (in ~/.bashrc; "zsh" in ~/.zshrc, after compinit)',
            "ssl-toolkit completion fish > ~/.config/fish/completions/ssl-toolkit.fish",
        ),
    ),
}

TASKS = tuple(dict.fromkeys(command.task for command in COMMANDS.values()))
