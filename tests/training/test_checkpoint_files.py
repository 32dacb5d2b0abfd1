"""Files of checkpoints: whole or not there, on any disk, and read without running what they hold."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import clear_leftovers, write_text
from ssl_toolkit.training.checkpoints import FORMAT, OURS, checkpoint_path, read_checkpoint, write_checkpoint


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    try:
        path = disk / "checkpoints" / "last.ckpt"
        small, large = ({"state_dict": {"w": torch.ones(n)}, "optimizer_states": []} for n in (100, 10**6))
        write_checkpoint(small, path)
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"No space left on device; .* kept \(4\.0 MB needed, 0\.[23] MB free\)"):
            write_checkpoint(large, path)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """As a full disk, wherever no disk can be mounted: the system refuses the rest of the file."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint({"state_dict": {"w": torch.ones(9)}, "optimizer_states": []}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large; what was there is kept"):
            write_checkpoint({"state_dict": {"w": torch.ones(10**5)}, "optimizer_states": []}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_read_back_never_replaces_what_can(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, "last")
    good = {"state_dict": {}, "optimizer_states": []}
    write_checkpoint(good, path)
    before = path.read_bytes()
    with pytest.raises(pickle.UnpicklingError):
        write_checkpoint({**good, "callbacks": {"someone's": Path("a path")}}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a file was run",))


def test_damaged_files_are_named_with_those_to_use_instead(tmp_path: Path) -> None:
    last, kept = (checkpoint_path(tmp_path, name) for name in ("last", "epoch-0002"))
    contents = {"state_dict": {"net.1.weight": torch.rand(50)}, "optimizer_states": [], OURS: {"format": FORMAT}}
    for path in (last, kept):
        write_checkpoint(contents, path)
    whole = last.read_bytes()
    weight = read_checkpoint(last)["state_dict"]["net.1.weight"].numpy().tobytes()
    middle = whole.index(weight) + 3
    damage: dict[str, bytes | None] = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "other": b"hello" * 1000,
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "pickle": pickle.dumps(Evil()),
    }
    for content in damage.values():
        last.write_bytes(content or b"")
        with pytest.raises(UserError) as caught:
            read_checkpoint(last)
        assert str(caught.value).startswith(f"{last} is damaged or no checkpoint (")
        assert f"the run also has epoch-0002: to continue from one of them, cp {kept} {last}" in str(caught.value)
    last.unlink()
    with pytest.raises(UserError, match=f"there is no checkpoint {last}; the run also has epoch-0002"):
        read_checkpoint(last)
    os.link(kept, last)
    kept.write_bytes(b"")  # both are damaged by one stroke
    with pytest.raises(UserError, match="the run has no other checkpoint"):
        read_checkpoint(last)
    torch.save({"state_dict": {}}, last)
    with pytest.raises(UserError, match=r"is not a checkpoint of ssl-toolkit pretrain"):
        read_checkpoint(last)
    torch.save({"ssl_toolkit": {"format": 99}}, last)
    with pytest.raises(UserError, match="has format 99, this version reads 1: update ssl-toolkit"):
        read_checkpoint(last)


def test_leftovers_are_told_from_everything_else(tmp_path: Path) -> None:
    kept = ["last.ckpt", ".lock", "notes-abcdefgh.txt", ".hidden-file.ckpt"]
    for name in (*kept, ".last-abcd_123.ckpt", ".metrics-0a1b2c3d.csv"):
        write_text(tmp_path / name, "")
    assert {path.name for path in clear_leftovers(tmp_path)} == {".last-abcd_123.ckpt", ".metrics-0a1b2c3d.csv"}
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    assert clear_leftovers(tmp_path / "nowhere") == []
