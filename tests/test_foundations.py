"""Files, errors, registry and progress."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from ssl_toolkit import progress
from ssl_toolkit.errors import UserError, nearest, unknown
from ssl_toolkit.files import atomic_path, cache_dir, read_json, write_json, write_text
from ssl_toolkit.registry import Registry, typed


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "first")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "first")

    def write() -> None:
        with atomic_path(target):
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"file\.txt: No space left on device; what was there is kept"):
        write()
    assert target.read_text() == "first"
    with pytest.raises(UserError, match="cannot write"):
        write_text(target / "below", "a file is no folder")


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match=r"cannot read .*c\.json"):
        read_json(tmp_path / "c.json")


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SSL_TOOLKIT_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "ssl-toolkit"


def test_nearest_names() -> None:
    assert nearest("vicregx", ["vicreg", "simclr"]) == "did you mean 'vicreg'?"
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"
    assert nearest("zzz", []) == "there is none"
    assert str(unknown("method", "zzz", ["a"])) == "unknown method 'zzz': valid: a"


@dataclass
class Options:
    size: int = 3
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be positive, not {self.size}")


def test_registry_builds_typed_options() -> None:
    registry: Registry[tuple[Options, int]] = Registry("thing")

    @registry.register("a", Options)
    def make(options: Options, extra: int) -> tuple[Options, int]:
        return options, extra

    assert registry.build({"name": "a", "size": 4, "tags": ["x"]}, extra=7) == (Options(4, ["x"]), 7)
    assert registry.names() == ["a"]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("a", Options)(make)
    for config, message in [
        ({"name": "b"}, "unknown thing 'b'"),
        ({"size": 1}, "'name' is missing"),
        ({"name": "a", "sise": 1}, "unknown key 'thing.sise': did you mean 'size'"),
        ({"name": "a", "size": "big"}, "thing.size"),
        ({"name": "a", "size": 0}, "thing: size must be positive, not 0"),
    ]:
        with pytest.raises(UserError, match=message):
            registry.build(config, extra=0)
    assert typed(Options, {}, "x") == Options()


def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.progress_bar("training", 1000, console=Console(file=out, width=200), done=100) as bar:
        for _ in range(9):
            now[0] += 10.0
            bar.advance(100, "loss 1.5")
    lines = out.getvalue().splitlines()
    assert lines[0] == "training: 300/1000, 10 images/s, 1:10 left, loss 1.5"
    assert lines[-1] == "training: 1000/1000 in 1:30 (10 images/s)"
    assert len(lines) == 5


def test_slow_things_are_told_by_the_time_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.progress_bar("runs", 3, "runs", console=Console(file=out, width=200)) as bar:
        now[0] = 180.0
        bar.advance()
    assert out.getvalue().splitlines() == ["runs: 1/3, 180 s each, 6:00 left", "runs: 1/3 in 3:00 (180 s each)"]


def test_progress_on_a_terminal_draws_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    assert list(progress.track(range(3), "reading", total=3, console=console)) == [0, 1, 2]
    assert "reading" in out.getvalue()
    assert "3/3" in out.getvalue()
