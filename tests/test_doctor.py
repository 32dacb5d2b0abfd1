"""``ssl-toolkit doctor``: it says what is there, and each thing that is broken is found."""

from __future__ import annotations

import json
import py_compile
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from ssl_toolkit import doctor_checks
from ssl_toolkit.cli import main
from ssl_toolkit.doctor_checks import BROKEN, NOTE, OK, Finding
from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision
from tests.test_cli import write_photos


def by_name(findings: Any) -> dict[str, Finding]:
    return {each.name: each for each in findings}


def test_a_sound_machine_is_healthy_and_says_what_will_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", classes=3, each=2)
    assert main(["doctor", "photos", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["healthy"] is True
    device = pick_device("auto")
    assert said["uses"]["device"].startswith(str(device))
    assert describe_hardware(device, pick_precision("auto", device)) in said["uses"]["precision"]
    assert said["uses"]["view_engine"].startswith("dali" if "dali (" in said["uses"]["view_engine"] else "torch")
    found = {each["name"]: each for each in said["findings"]}
    assert found["photos"]["value"] == "6 images, 3 classes"
    assert found["torch"]["value"] == torch.__version__.split("+")[0] or found["torch"]["value"] == torch.__version__
    assert str(tmp_path / "cache") in found["cache"]["value"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("nothing is broken")


def test_data_that_is_not_there_or_broken_is_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("packages", "compute"):
        monkeypatch.setattr(doctor_checks, part, lambda: iter(()))
    write_photos(tmp_path / "photos", classes=1, each=1)
    next((tmp_path / "photos").rglob("*.png")).write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / name) for name in ("nowhere", "empty", "photos")]
    assert main(["doctor", *paths]) == 1
    said = capsys.readouterr().out
    assert "nowhere does not exist" in said
    assert "no images in" in said
    assert f"ssl-toolkit data check {paths[2]}" in said
    assert "3 broken: " in said
    assert main(["doctor", *paths, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2.11", "timm>=999", "surely-not-installed>=1", "surely-not>=2; extra == 'thing'"]
    extras = SimpleNamespace(get_all=lambda _: ["thing", "dev"])
    monkeypatch.setattr(doctor_checks.importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(doctor_checks.importlib.metadata, "metadata", lambda _: extras)
    found = by_name(doctor_checks.packages())
    assert found["torch"].status == OK
    assert found["timm"].status == BROKEN
    assert found["timm"].advice == "pip install 'timm>=999'"
    assert found["surely-not-installed"].value == "missing, >=1 is needed"
    assert found["[thing]"].status == OK
    assert found["[thing]"].advice == "optional: pip install 'ssl-toolkit[thing]'"
    assert "[dev]" not in found
    old = doctor_checks._optional("thing", [Requirement("timm>=999")])
    assert old.status == NOTE


@pytest.mark.parametrize(("may_not", "is_compiled"), [(True, False), (True, True), (False, False)])
def test_packages_that_are_compiled_at_every_start(
    may_not: bool, is_compiled: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lightning"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    if is_compiled:
        py_compile.compile(str(package / "__init__.py"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lightning", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", may_not)
    found = [finding for finding in doctor_checks.packages() if finding.name == "bytecode"]
    assert len(found) == (may_not and not is_compiled)
    for finding in found:
        assert finding.status == "note"
        assert finding.advice.endswith(f"compileall -q {tmp_path}")


def test_a_torch_that_does_not_import_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor_checks.importlib, "import_module", fails)
    (found,) = doctor_checks.compute()
    assert (found.name, found.status) == ("torch", BROKEN)
    assert "libcudart" in found.value


def test_a_device_that_computes_wrongly_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.full((64, 64), 2.0))
    found = by_name(doctor_checks.compute())
    assert found["device"].status == BROKEN
    assert "multiplies matrices wrongly" in found["device"].value
    assert found["torchvision"].status == OK


@pytest.mark.parametrize(("cuda", "words"), [(None, "built without CUDA"), ("13.0", "torch (CUDA 13.0) sees no GPU")])
def test_a_driver_without_a_gpu_is_a_note(cuda: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False), version=SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (found,) = doctor_checks._gpus(fake)
    assert found.status == NOTE
    assert words in found.value


def test_gpus_are_named() -> None:
    about = SimpleNamespace(name="H200", total_memory=141 * 1024**3, major=9, minor=0)
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda _: about)
    cudnn = SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91000))
    fake = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"), backends=cudnn)
    found = by_name(doctor_checks._gpus(fake))
    assert found["cuda:1"].value == "H200, 141.0 GiB, compute capability 9.0"
    assert found["CUDA"].value == "13.0, cuDNN 91000"


def test_little_room_is_a_note_and_a_cache_that_cannot_be_written_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.chdir(tmp_path)
    little = SimpleNamespace(total=64 * 1024**2, free=1024**3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
    found = by_name(doctor_checks.machine())
    assert found["disk here"].status == NOTE
    assert "runs_dir=" in found["disk here"].advice
    assert found["cache"].status == BROKEN
    assert "SSL_TOOLKIT_CACHE" in found["cache"].advice
    if Path("/dev/shm").is_dir():
        assert found["shared memory"].status == NOTE
        assert "--shm-size" in found["shared memory"].advice


def test_limits_of_a_container_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/sys/fs/cgroup/cpu.max": "150000 100000",
        "/sys/fs/cgroup/memory.max": str(2 * 1024**3),
        "/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
    }
    monkeypatch.setattr(doctor_checks, "_text", lambda path: texts[str(path)])
    assert "held to 1.5 by the container" in doctor_checks._cores()
    assert doctor_checks._memory() == "8.0 GiB, 4.0 GiB free, held to 2.0 GiB by the container"
