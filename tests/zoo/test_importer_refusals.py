"""Files that are no checkpoints, or do not mean well: each is refused in one line, and nothing in them is run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo.importers import load_checkpoint, pickles, reading

RUN: list[str] = []


def run_me(said: str) -> Tensor:
    """What a hostile pickle calls; remembered, so that a test would see it."""
    RUN.append(said)
    return torch.zeros(1)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def refused(path: Path) -> str:
    """What is said of a file that must not load; the name of the file first, and all in one line."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda marker: Calls(os.system, f"touch {marker}"), f"{os.name}.system"),
        (lambda marker: Calls(builtins.eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        (lambda marker: Calls(run_me, "hello"), "tests.zoo.test_importer_refusals.run_me"),
        (lambda marker: Calls(bytearray, 1 << 40), "builtins.bytearray"),
        (lambda marker: Calls(getattr, torch, "load"), "builtins.getattr"),
    ],
)
def test_a_hostile_pickle_is_not_run(path: Path, tmp_path: Path, call: Any, named: str, legacy: bool) -> None:
    marker = tmp_path / "was-here"
    tree = {"state_dict": {"conv1.weight": torch.zeros(2), "conv2.weight": call(marker)}, "epoch": 1}
    if named == "builtins.getattr":  # a module does not pickle
        tree["state_dict"]["conv2.weight"] = Calls(getattr, "x", "join")
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    said = refused(path)
    assert f"does not load as plain tensors: loading it would run or build {named}" in said
    assert not marker.exists()
    assert not RUN


def test_a_hostile_pickle_behind_a_torch_like_name(path: Path, tmp_path: Path) -> None:
    """Written by hand: a name in a module whose objects are dropped is replaced by a class that does nothing."""
    marker = tmp_path / "was-here"
    body = b"\x80\x02cnumpy\nload\n(X" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"tR."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
    assert "holds neither a state dict" in refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("opcode", [b"(S'touch x'\nios\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."])
def test_instructions_that_torch_does_not_write(path: Path, opcode: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", opcode)
    assert "which torch.save does not write" in refused(path)


def test_plain_pickles_are_not_opened(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"conv1.weight": np.zeros(3)}}, protocol=2))
    assert "is a pickle that torch.save did not write" in refused(path)
    path.write_bytes(pickle.dumps({"x": Calls(run_me, "hello")}, protocol=2))
    assert "would run or build tests.zoo.test_importer_refusals.run_me" in refused(path)
    assert not RUN


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """Good files, to be spoilt."""
    weights = {"conv1.weight": torch.randn(64, 3, 7, 7), "bn1.weight": torch.randn(64)}
    found = {"safetensors": save(weights)}
    for name, new in (("zip", True), ("legacy", False)):
        file = io.BytesIO()
        torch.save(weights, file, _use_new_zipfile_serialization=new)
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(path: Path, whole: dict[str, bytes], kind: str, share: float) -> None:
    path.write_bytes(whole[kind][: max(12, round(share * len(whole[kind])))])
    said = refused(path)
    assert "does not load as plain tensors" in said
    assert any(word in said for word in ("cut off", "damaged"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_garbled_file(path: Path, whole: dict[str, bytes], kind: str) -> None:
    """Whatever byte is changed, the answer is one line: that the file is damaged, or that these are no weights."""
    rng = np.random.default_rng(0)
    content = whole[kind]
    for place in [*range(40), *rng.integers(0, min(len(content), 2000), 60)]:
        spoilt = bytearray(content)
        spoilt[place] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        assert str(path) in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty: the download failed"),
        (b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n", "it is a web page"),
        (b"\n  <html lang=en>sign in to continue</html>", "it is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "it is a gzip archive: unpack it first"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "it is a NumPy array"),
        (b"not a checkpoint", "it is neither a PyTorch checkpoint nor safetensors"),
        (bytes(100), "it is neither a PyTorch checkpoint nor safetensors"),
    ],
)
def test_other_files(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    assert said in refused(path)


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    assert "it is a folder" in refused(tmp_path)
    assert "it does not exist" in refused(tmp_path / "none.pth")


def test_archives_of_others(path: Path) -> None:
    np.savez(path.open("wb"), a=np.zeros(3))
    assert "is a zip archive, but not one of PyTorch's" in refused(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert "it is a TorchScript archive, which holds code" in refused(path)


def repacked(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED, **replaced: bytes) -> None:
    """The archive ``content`` once more, packed by ``method``."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", method) as new:
        for info in old.infolist():
            new.writestr(info.filename, replaced.get(info.filename.split("/")[-1], old.read(info)))


def test_a_zip_bomb(path: Path) -> None:
    """A few kilobytes that unpack to hundreds of megabytes: PyTorch writes nothing compressed."""
    file = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(1 << 20)}, file)
    repacked(path, file.getvalue())
    assert path.stat().st_size < 20_000
    assert "it is a compressed archive, which PyTorch does not write" in refused(path)


def test_millions_of_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.zeros(1)
    torch.save({f"layer{i}.weight": one for i in range(350_000)}, path)  # three instructions each, one number in all
    assert "its index has more than 1,000,000 instructions" in refused(path)
    torch.save({f"layer{i}.weight": one for i in range(100_001)}, path)
    assert "it has 100,001 tensors, more than the 100,000" in refused(path)
    file = io.BytesIO()
    torch.save({"a": one}, file)
    repacked(path, file.getvalue(), zipfile.ZIP_STORED, **{"data.pkl": b"\x80\x02" + b"N0" * (reading.MAX_INDEX // 2)})
    assert f"its index has {reading.MAX_INDEX + 2:,} bytes, far more than weights need" in refused(path)
    monkeypatch.setattr(reading, "MAX_ENTRIES", 50)
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(60)}, path)
    assert "entries, more than the 50" in refused(path)
    save_file({f"layer{i}.weight": torch.zeros(1) for i in range(60)}, path)
    assert "it has 60 tensors, more than the 50" in refused(path)


def test_a_zip_with_more_entries_than_fit_in_16_bits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(70_000):
            archive.writestr(f"a/{i}", b"")
    monkeypatch.setattr(reading, "MAX_ENTRIES", 69_999)
    assert "it has 70,000 entries" in refused(path)


def test_sizes_beyond_the_file(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 40)}, path)
    assert "its tensors claim 4,398,046,511,104 bytes, the file has" in refused(path)
    # a storage of a terabyte in a file of the old kind, where the pickle alone says how large it is
    file = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(100)}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    place = content.index(b"K\x64N", content.index(b"FloatStorage"))
    path.write_bytes(content[:place] + b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + content[place + 2 :])
    assert "its tensors claim 1,099,511,627,776 numbers, the file has" in refused(path)
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "does not load as plain tensors" in refused(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{" + bytes(40))
    assert "it is cut off" in refused(path)


def test_safetensors_whose_length_looks_like_a_pickle(path: Path) -> None:
    for padding in range(0, 400, 8):
        save_file({"a": torch.ones(3)}, path, {"note": "x" * padding})
        assert torch.equal(reading.read_contents(path).tree["a"], torch.ones(3))
        if path.read_bytes()[0] == 0x80:
            return
    raise AssertionError("no padding gave such a length")


def test_entries_that_claim_more_than_the_archive(path: Path, whole: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(whole["zip"])) as archive:
        size = max(info.file_size for info in archive.infolist())
    spoilt = whole["zip"].replace(struct.pack("<II", size, size), struct.pack("<II", size, 1 << 31))
    assert spoilt != whole["zip"]
    path.write_bytes(spoilt)
    assert any(word in refused(path) for word in ("claim", "damaged"))


def test_the_stand_in_keeps_nothing() -> None:
    stand_in = pickles.Inert(1, x=2)
    stand_in.__setstate__({"secret": 1})
    assert vars(stand_in) == {}


def test_contents_without_a_state_dict(path: Path) -> None:
    for content in ([1, 2], {"model": [1]}, {"epoch": 3}, {}, "text", {"state_dict": {}}):
        torch.save(content, path)
        assert "holds neither a state dict nor a checkpoint with one under 'state_dict', 'model'" in refused(path)
    torch.save({"a": torch.zeros(2), "b": torch.zeros(3)}, path)
    assert "names such as a, b do not tell the architecture: give it" in refused(path)
