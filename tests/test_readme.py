"""Every command of the README and docs runs, at sizes of seconds; the Python block works on what they made."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from ssl_toolkit.cli import main
from ssl_toolkit.eval_commands import eval_data_config
from ssl_toolkit.zoo import chosen
from tests.bench.helpers import TINY
from tests.test_cli import write_photos

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALL_TRAINING = ["trainer.steps=2", "trainer.batch_size=8", "trainer.workers=0", "trainer.precision=fp32"]
SMALL_SCENES = ["data.train_size=64", "data.val_size=32", "data.test_size=32"]
ELSEWHERE = "data.root=/data/"
SMALL_EVAL = [
    "linear.epochs=1", "linear.max_iter=5", "linear.cs=[1.0]", "segmentation.iterations=2", "precision=fp32",
    "linear_augmented.epochs=1", "finetune.epochs=1", "finetune.lrs=[0.1]", "finetune.batch_size=8",
    "segmentation_augmented.iterations=2", "segmentation_augmented.batch_size=4",
    "detection.iterations=2", "detection.batch_size=4", "detection_finetune.iterations=2",
    "detection_finetune.batch_size=2", "detection_finetune.milestones=[1]", "detection_finetune.warmup=1",
    "matching.images=8", "match_rules.images=8", "spectrum.images=8", "clustering.seeds=[0]", "clustering.iterations=5",
]  # fmt: skip


DOCS = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    lines = [line for block in blocks("sh", text) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def shrunk(argv: list[str]) -> list[str]:
    """The same command on less of everything."""
    if argv[0] == "bench":
        return argv + TINY[argv[1]]
    if argv[0] == "eval":
        small = SMALL_EVAL + (["data.eval_resize=32", "data.eval_size=32"] if "run=runs/mine" in argv else [])
        return argv + small + (SMALL_SCENES if "backbone=tiny_resnet" in argv else [])
    if argv[0] == "reproduce":
        scenes = [*SMALL_SCENES, *SMALL_TRAINING]
        return ["reproduce", "table11", "seeds=[0]", "parallel=1", *[a for a in argv[2:] if "=" not in a], *scenes]
    if argv[0] == "picture":
        small = ["perplexity=5", "count=20"] if argv[1] == "map" else ["count=2"]
        return [word for word in argv if not word.startswith("count=")] + small
    if argv[0] == "export":
        return [word for word in argv if word not in ("--checkpoint", "epoch-0005")]  # of an epoch that is not reached
    if "launcher=slurm" in argv:  # prints a script
        return argv
    if argv[0] == "pretrain" and not any(a.startswith("run=") for a in argv):
        scenes = any(a.startswith("experiment=digits") for a in argv)
        return argv + SMALL_TRAINING + (SMALL_SCENES if scenes else ["views=small"])
    return argv


def run_documented(argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one command of the pages, without its program, in ``folder``; the others before it have run."""
    resumed = [word.removeprefix("run=") for word in argv if word.startswith("run=")]
    if argv[0] == "pretrain" and resumed:
        (folder / resumed[0] / "backbone.safetensors").unlink()  # as if it had been stopped
    if argv[:2] == ["zoo", "download"]:  # would be downloaded, as with zoo=
        assert chosen([argv[2]])[0].file(dict(word.split("=") for word in argv[3:]).get("file"))
    elif any(word.startswith("zoo=") for word in argv):
        eval_data_config(argv[2:])
    elif any(word.startswith(ELSEWHERE) for word in argv):  # not here; the recipes' own tests assemble them all
        assert main(argv) == 2, argv
        assert "/data/" in capsys.readouterr().err
    else:
        assert main(shrunk(argv)) == 0, argv


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [argv[1] for argv in commands() if argv[0] == "make"]
    assert targets == ["demo", "test"]
    for target in targets:
        assert f"\n{target}:" in makefile


@pytest.mark.first
@pytest.mark.command
def test_commands_and_python_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", classes=2, each=12)
    ran = [argv[1:] for argv in commands(README + DOCS) if argv[0] == "ssl-toolkit"]
    assert len(ran) >= 8
    for argv in map(list, dict.fromkeys(map(tuple, ran))):  # once where several pages have it
        run_documented(argv, tmp_path, capsys)
    (block,) = blocks("python")
    names: dict[str, object] = {"images": torch.zeros(2, 3, 64, 64)}
    exec(block, names)
    pooled = names["pooled"]
    assert isinstance(pooled, torch.Tensor)
    assert pooled.shape == (2, 128)


def test_links_lead_somewhere() -> None:
    for folder, text in ((ROOT, README), (ROOT / "docs", DOCS)):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith(("http", "reference/")):  # made with the site, whose links tests/docs checks
                continue
            page, _, section = target.partition("#")
            assert (folder / page).exists(), target
            linked = text if not page else (folder / page).read_text() if section else ""
            titles = re.findall(r"^#+ (.*)", linked, flags=re.MULTILINE)
            assert not section or section in [
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            ], target


def test_what_a_run_leaves_is_what_it_says(tmp_path: Path) -> None:
    listed = re.search(r"```\nruns/first/\n(.*?)```", README, flags=re.DOTALL)
    assert listed is not None
    names = [line.split()[0] for line in listed.group(1).splitlines()]
    assert names == [
        "config.yaml",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "backbone.safetensors",
        "environment.json",
        "examples/views.png",
        "unreadable.txt",
        "results/*.json",
        "report.html",
    ]
