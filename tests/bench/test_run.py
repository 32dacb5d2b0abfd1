"""Benches as a user runs them: what is printed, what is kept, and one line for every mistake."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from ssl_toolkit.bench import (
    SUITES,
    BenchConfig,
    Comparison,
    Contender,
    Counted,
    Outcome,
    Suite,
    lightly_losses,
    suite_options,
    textbook,
    timing,
)
from ssl_toolkit.bench.report import Measured, notes, show, table
from ssl_toolkit.bench.run import measure
from ssl_toolkit.bench.step import Step, StepConfig, build, method_config, random_views
from ssl_toolkit.bench.timing import Timer
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.registry import Entry, typed
from tests.bench.helpers import TINY
from tests.test_cli import error_of

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _one_call_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.0)


@pytest.mark.parametrize("name", SUITES.names())
def test_the_yaml_of_a_suite_lists_every_option_with_its_default(name: str) -> None:
    schema = SUITES.entry(name).schema
    config = compose_config(f"bench_{name}")
    assert set(config) == set(OmegaConf.structured(schema))
    defaults = schema()
    if isinstance(defaults, StepConfig):  # the group's YAML writes out what the name alone stands for
        assert config.optimizer.name == defaults.optimizer["name"]
        defaults.optimizer = dict(config.optimizer)
    assert typed(schema, config, "bench") == suite_options(name, []) == defaults


def test_criterion_prints_ratios_and_keeps_every_sample(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "criterion", *TINY["criterion"]]) == 0
    printed = capsys.readouterr().out
    result = json.loads((home / "bench-criterion.json").read_text())
    *compared, counted = result["comparisons"]
    titles = [c["title"].split(":")[0] for c in compared]
    assert titles == ["A global", "A local", "B global", "B local", "C global", "C local", "NT-Xent 8"]
    assert counted["rows"][0]["shared"] == counted["rows"][0]["repeated"]
    assert "MB received" in printed
    assert result["environment"]["torch"]
    assert result["environment"]["lightly"] == lightly_losses.version()
    assert result["options"]["sizes"]["A"]["batch"] == 6
    for comparison in compared:
        assert comparison["title"] in " ".join(printed.split())  # a title is folded to its table
        rows = {row["name"]: row for row in comparison["contenders"]}
        assert list(rows)[:3] == ["ours", "textbook", "lightly"]
        assert ("ours (preset)" in rows) == ("local" in comparison["title"])
        ours, textbook = rows["ours"], rows["textbook"]
        assert len(ours["seconds"]) == len(textbook["seconds"]) == 2
        assert ours["ratio"] is None
        assert textbook["ratio"]["low"] <= textbook["ratio"]["median"] <= textbook["ratio"]["high"]
        assert textbook["same_maths"]
        assert max(textbook["agreement_float64"].values()) < 1e-12
        assert textbook["agreement"]["value"] < 1e-3
        if lightly_losses.missing():
            assert "pip install lightly" in rows["lightly"]["absent"]
            assert "pip install lightly" in printed
        else:
            assert max(rows["lightly"]["agreement_float64"].values()) < 1e-12


def test_what_is_asked_for_is_what_runs(home: Path) -> None:
    options = [*TINY["criterion"], "cases=C,B", "parts=local", "contenders=ours", "out=some/where.json", "threads=1"]
    assert main(["bench", "criterion", *options]) == 0
    result = json.loads((home / "some" / "where.json").read_text())
    assert [c["title"].split(":")[0] for c in result["comparisons"]] == ["C local", "B local"]
    assert [row["name"] for row in result["comparisons"][0]["contenders"]] == ["ours", "ours (preset)"]
    assert result["environment"]["threads"] == "1"


def test_an_own_case(home: Path) -> None:
    sizes = [f"+sizes.mine.{k}={v}" for k, v in {"batch": 3, "dim": 4, "local_dim": 4}.items()]
    assert main(["bench", "criterion", "cases=mine", "rounds=1", *sizes]) == 0
    result = json.loads((home / "bench-criterion.json").read_text())
    assert result["comparisons"][0]["title"] == "mine global: VICReg, 2 views, N 3, D 4"


def test_without_lightly_its_row_says_how_to_get_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightly_losses.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "criterion", *TINY["criterion"], "cases=C,nt_xent"]) == 0
    printed = capsys.readouterr().out
    assert "lightly: not installed (pip install lightly)." in printed
    assert "textbook" in printed


def test_step_compares_methods_with_the_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *TINY["step"]]) == 0
    printed = capsys.readouterr().out
    assert "+18%, +39%" in printed  # the paper's, beside ours
    (comparison,) = json.loads((home / "bench-step.json").read_text())["comparisons"]
    assert comparison["reference"] == "vicreg"
    rows = {row["name"]: row for row in comparison["contenders"]}
    # The local projector and its optimizer state: 3 x 512 x 512 and the first layer, weights, gradients and momentum.
    added = rows["vicregl"]["resident_bytes"] - rows["vicreg"]["resident_bytes"]
    assert added > 3 * 4 * (2 * 512 * 512)
    assert rows["vicregl"]["published"] == "+18%, +39%"
    assert main(["bench", "step", *TINY["step"], "methods=simclr,simclr_l"]) == 0
    assert "39%" not in capsys.readouterr().out


def test_a_step_trains_and_counts_what_it_holds() -> None:
    overrides = [*TINY["step"], "optimizer=sgd"]
    options = suite_options("step", overrides)
    assert isinstance(options, StepConfig)
    module = build(options, method_config(options, "vicregl"), CPU)
    step = Step(module, random_views(4, 48, 0), torch.float32)
    before = {k: v.clone() for k, v in module.named_parameters()}
    numbers = sum(p.numel() for p in module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    assert step.resident() == 4 * numbers + buffers
    step()
    assert step.resident() == 3 * 4 * numbers + buffers  # and gradients and momentum
    moved = [k for k, v in module.named_parameters() if not torch.equal(v, before[k])]
    assert any(k.startswith("method.local_head") for k in moved)
    assert any(k.startswith("method.backbone") for k in moved)


def test_random_views_have_boxes_inside_their_images() -> None:
    batch = random_views(16, 8, 0)
    assert batch.num_large == len(batch.views) == 2
    for view in batch.views:
        assert view.image.dtype == torch.uint8
        x0, y0, x1, y1 = view.box.unbind(1)
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= 500.01).all() and (y1 <= 375.01).all()  # noqa: PT018
        assert ((x1 - x0) > 100).all()


def contender(name: str, value: float, gradient: float = 1.0, **options: object) -> Contender:
    outcome = Outcome(torch.tensor(value), [torch.tensor([gradient, 0.0])])
    return Contender(name, lambda _: outcome, **options)  # type: ignore[arg-type]


def measured(*contenders: Contender, twin: list[Contender] | None = None) -> Measured:
    console = Console(file=io.StringIO())
    comparison = Comparison("X: test", list(contenders), twin=Comparison("small", twin) if twin else None)
    return measure(comparison, BenchConfig(rounds=2), Timer(CPU), console)


def test_other_maths_gets_no_ratio() -> None:
    found = measured(
        contender("ours", 2.0),
        contender("same", 2.0 + 1e-5, 1.001),
        contender("value", 2.01),
        contender("gradient", 2.0, 1.5),
        contender("nan", float("nan")),
        contender("on purpose", 3.0, same_maths=False),
    )
    rows = {row["name"]: row for row in found.as_dict()["contenders"]}
    assert {name: row["same_maths"] for name, row in rows.items()} == {
        "ours": True, "same": True, "value": False, "gradient": False, "nan": False, "on purpose": False,
    }  # fmt: skip
    assert {name for name, row in rows.items() if row["ratio"]} == {"same", "on purpose"}
    text = " ".join(notes(found))
    assert "value: other maths: value differs by 5e-03" in text
    assert "gradient: other maths: gradient differs by 5e-01" in text
    assert "same: same maths as ours; relative difference here value 5e-06, gradient 1e-03." in text


def test_small_float64_inputs_tell_other_maths_from_rounding() -> None:
    twin = [contender("ours", 2.0), contender("near", 2.0 + 1e-6), contender("on purpose", 3.0, same_maths=False)]
    full = [contender("ours", 2.0), contender("near", 2.0 + 1e-6), contender("on purpose", 3.0, same_maths=False)]
    found = measured(*full, twin=twin)
    assert found.other_maths("near").startswith("other maths: value differs by 5e-07 in float64")
    assert found.time_ratio("near") is None
    assert found.memory_ratio("near") is None
    assert found.other_maths("on purpose") == ""


def test_a_row_of_the_criterion_bench_with_wrong_maths_is_found(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A match kept too few, which a tolerance for float32 could pass, and a gradient that is lost."""
    local, contrast = textbook.vicregl_local, textbook.nt_xent
    monkeypatch.setattr(textbook, "vicregl_local", lambda v, points, num_large, gammas: local(
        v, points, num_large, (gammas[0], gammas[1] - 1)))  # fmt: skip
    monkeypatch.setattr(textbook, "nt_xent", lambda x, y, t: contrast(x, y.detach(), t) + 0 * y.sum())
    assert main(["bench", "criterion", *TINY["criterion"], "cases=C,nt_xent", "parts=local"]) == 0
    printed = capsys.readouterr().out
    assert "textbook: other maths: value differs by" in printed
    assert "textbook: other maths: gradient differs by" in printed


def test_what_needs_no_timing_is_shown_and_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Table("heading")
    shown.add_row("cell")
    schema = BenchConfig
    entry = Entry(lambda options, device: Suite([("what", "a test")], iter([Counted(shown, {"n": 1})])), schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES._entries, "counted", entry)
        patch.setattr("ssl_toolkit.bench.run.suite_options", lambda name, overrides: BenchConfig(out="c.json"))
        assert main(["bench", "counted"]) == 0
    assert "cell" in capsys.readouterr().out
    assert json.loads((home / "c.json").read_text())["comparisons"] == [{"n": 1}]


def test_a_contender_that_runs_out_of_memory_is_left_out_and_the_others_go_on() -> None:
    def fail(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = measured(contender("ours", 1.0), Contender("large", fail), contender("other", 1.0))
    assert found.failures == {"large": "out of memory"}
    assert set(found.samples) == {"ours", "other"}
    assert "large: out of memory." in notes(found)
    out = io.StringIO()
    show(table(found), notes(found), Console(file=out, width=100))
    assert "large" in out.getvalue()


def test_a_bug_is_not_taken_for_lack_of_memory() -> None:
    def fail(_: object) -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        measured(Contender("ours", fail))


def test_percent_and_factors_in_the_table() -> None:
    found = measured(contender("ours", 1.0), contender("other", 1.0))
    for samples, seconds, extra in zip(found.samples.values(), ([1.0, 2.0], [1.1, 1.9]), (10**8, 15 * 10**7)):
        samples.seconds, samples.extra_bytes = list(seconds), extra
    for percent, expected in ((True, ["0.0%", "-5.0 to +10.0%", "+50.0%"]), (False, ["1x", "0.95-1.1x", "1.5x"])):
        shown = replace(found, comparison=replace(found.comparison, percent=percent))
        out = io.StringIO()
        Console(file=out, width=120).print(table(shown))
        row = next(line for line in out.getvalue().splitlines() if "other" in line)
        assert "1,500" in row
        assert all(part in row for part in expected), row


def test_mistakes_get_one_line_before_anything_is_timed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "folder").mkdir()
    (home / "file").write_text("")
    cases = [
        (["critrion"], "unknown bench suite 'critrion': did you mean 'criterion'"),
        (["cases=A"], "name the suite first"),
        (["criterion", "cases=D"], "unknown case 'D': valid: A, B, C, nt_xent"),
        (["criterion", "cases=[]"], "no case is named"),
        (["criterion", "parts=globl"], "unknown part 'globl': did you mean 'global'"),
        (["criterion", "contenders=lightley"], "did you mean 'lightly'"),
        (["criterion", "round=3"], "unknown key 'round': did you mean 'rounds'"),
        (["criterion", "rounds=0"], "rounds must be at least 1, not 0"),
        (["criterion", "rounds=1,2"], "rounds takes one value"),
        (["criterion", "rounds=many"], "rounds"),
        (["criterion", "budget=0"], "budget must be a positive number of seconds"),
        (["criterion", "threads=0"], "threads must be at least 1 or null"),
        (["criterion", "nt_xent=1"], "nt_xent must be batch sizes of at least 2"),
        (["criterion", "sizes.A.batch=1"], "batch of a case must be at least 2"),
        (["criterion", "sizes.A.gammas=[50,4]"], "above the cells of its maps"),
        (["criterion", "sizes.A.bach=4"], "did you mean 'sizes.A.batch'"),
        (["criterion", "device=tpu"], "unknown device 'tpu'"),
        (["criterion", "out=folder"], "out=folder is a folder"),
        (["criterion", "out=file/x.json"], "is not a folder that you may write to"),
        (["step", "methods=vicregm"], "unknown method 'vicregm': did you mean 'vicreg'"),
        (["step", "methods=vicreg,vicreg"], "each once"),
        (["step", "backbone=resnet51"], "unknown backbone 'resnet51'"),
        (["step", "optimizer=adam"], "unknown optimizer 'adam': did you mean 'adamw'"),
        (["step", "batch_size=1"], "batch_size must be at least 2"),
        (["step", "head=[0]"], "widths must be positive"),
        (["step", "precision=fp16"], "unknown precision 'fp16'"),
        (["step", "backbone.drop_pat=0"], "did you mean 'backbone.drop_path'"),
        (["step", "backbone=vit_small", "image_size=20"], "20x20 pixels"),
    ]  # fmt: skip
    for argv, message in cases:
        assert message in error_of(capsys, "bench", *argv), argv
    assert {p.name for p in home.iterdir()} == {"folder", "file"}


def test_threads_are_given_back(home: Path) -> None:
    before = torch.get_num_threads()
    assert main(["bench", "criterion", *TINY["criterion"], "cases=C", "parts=global", f"threads={before + 1}"]) == 0
    assert torch.get_num_threads() == before
