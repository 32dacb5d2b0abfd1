"""Checkpoint files: written whole or not at all, read without unpickling anything."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, disk_full

LAST, BEST = "last", "best"
OURS = "ssl_toolkit"
"""Key of what this toolkit keeps in a checkpoint beside Lightning's keys."""
FORMAT = 1


class NotFinite(UserError):
    """A state that is not worth keeping: weights, buffers or moments are not finite."""


def checkpoint_path(run: Path, name: str) -> Path:
    """The file of a checkpoint of a run: ``last``, ``best``, ``epoch-0010``."""
    return run / "checkpoints" / f"{name}.ckpt"


def checkpoint_names(run: Path) -> list[str]:
    """The checkpoints that a run has, ``last`` and ``best`` first."""
    names = [path.stem for path in (run / "checkpoints").glob("*.ckpt") if not path.name.startswith(".")]
    return sorted(names, key=lambda name: (name not in (LAST, BEST), name == BEST, name))


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts and lists, with the keys that lead to them."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for position, value in enumerate(tree):
            yield from _tensors(value, f"{name}.{position}")


@torch.no_grad()
def not_finite(tree: Any) -> str | None:
    """The name of a tensor in ``tree`` that has a value which is not finite; None where there is none."""
    devices: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in _tensors(tree):
        if tensor.is_floating_point() and tensor.numel():
            devices.setdefault(tensor.device, []).append((name, tensor))
    for named in devices.values():  # one answer to wait for from each
        finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
        if not all(finite):
            return named[finite.index(False)][0]
    return None


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint in the place of ``path``; where that fails, ``path`` stays what it was.

    Raises:
        NotFinite: weights, buffers or the optimizer's state are not finite.
        UserError: the file cannot be written.
    """
    state = {key: checkpoint[key] for key in ("state_dict", "optimizer_states")}
    broken = not_finite(state)
    if broken is not None:
        raise NotFinite(f"{broken} is not finite; {path} keeps what was there")
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # torch's words for what went wrong with the file are about its own code
                    raise _cause(error) from error
            torch.load(temporary, weights_only=True, mmap=True)  # what cannot be read back must not replace what can
    except UserError as error:
        if not disk_full(error):
            raise
        needed = sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(state))
        free = shutil.disk_usage(path.parent).free
        raise UserError(f"{error} ({_megabytes(needed)} needed, {_megabytes(free)} free)") from error


def _cause(error: BaseException) -> BaseException:
    """The `OSError` during which ``error`` arose, else ``error``."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    return found or error


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def read_checkpoint(path: Path, *, tensors: bool = True, verify: bool = True) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Args:
        tensors: read them now; otherwise they are mapped, and read when they are used.
        verify: compare all bytes with the checksums that were stored with them.

    Raises:
        UserError: there is no such file, it is damaged, or not a checkpoint of this toolkit; the others of its folder
            are named.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}{_others(path)}")
    try:
        if verify:
            with zipfile.ZipFile(path) as file:
                bad = file.testzip()
            if bad is not None:
                raise zipfile.BadZipFile(f"bad checksum of {bad}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=not tensors)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or no checkpoint ({reason}){_others(path)}") from error
    ours = checkpoint.get(OURS) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict):
        raise UserError(f"{path} is not a checkpoint of ssl-toolkit pretrain{_others(path)}")
    if ours.get("format") != FORMAT:
        raise UserError(f"{path} has format {ours.get('format')}, this version reads {FORMAT}: update ssl-toolkit")
    return checkpoint


def _others(path: Path) -> str:
    """A sentence on the other checkpoints beside ``path``, which could take its place."""
    if path.parent.name != "checkpoints":
        return ""
    found = [path.with_name(f"{name}.ckpt") for name in checkpoint_names(path.parent.parent)]
    # a hard link is the same file by another name, and as damaged
    found = [other for other in found if other != path and not (path.exists() and other.samefile(path))]
    if not found:
        return "; the run has no other checkpoint"
    names = ", ".join(other.stem for other in found)
    return f"; the run also has {names}: to continue from one of them, cp {found[0]} {path}"


class CheckpointFiles(CheckpointIO):
    """Reads and writes checkpoints for Lightning."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `read_checkpoint`; nothing is ever unpickled, whatever ``weights_only`` says."""
        return read_checkpoint(Path(path), verify=False)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a file."""
        Path(path).unlink(missing_ok=True)


def progress(template: Mapping[str, Any], step: int, steps_per_epoch: int) -> dict[str, Any]:
    """The state of Lightning's fit loop between two steps.

    What Lightning stores by itself depends on the hook in which a checkpoint is written, and does not always continue
    in the same place; the number of steps says all there is to say.

    Args:
        template: the state of a fresh loop (``trainer.fit_loop.state_dict()``).
        step: steps done.
        steps_per_epoch: batches of an epoch; an epoch whose last batch is done has ended.
    """
    epoch, within = divmod(step, steps_per_epoch)

    def counted(tree: Any, total: int, current: int) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if "total" not in tree:
            return {key: counted(value, total, current) for key, value in tree.items()}
        counts = {key: dict.fromkeys(tree[key], n) for key, n in (("total", total), ("current", current))}
        return {**tree, **counts}

    optimization = "epoch_loop.automatic_optimization.optim_progress"
    state = {key: dict(value) for key, value in template.items()}
    for key in ("epoch_loop.batch_progress", "epoch_loop.scheduler_progress", optimization):
        state[key] = counted(state[key], step, within)
    begun = epoch + (within > 0)
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    state["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    return state
