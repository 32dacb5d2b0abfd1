"""What a pickle would do, found by reading its instructions, before anything is built from it.

``torch.load(weights_only=True)`` runs no code either, but what it allows by default may ask for any amount of memory
(``bytearray(10**12)``), and old checkpoints hold what it refuses: ``argparse.Namespace``, NumPy scalars. So the names a
pickle refers to are read here first. Names of tensors and plain containers are let through. Names of what trainers keep
beside the weights are replaced by `Inert`, a class of ours that keeps nothing: their own modules are never imported.
Whatever else is named is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

MAX_INSTRUCTIONS = 1_000_000
"""A full checkpoint of a ViT-L with the state of AdamW has 35,000."""

TENSORS = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.Size",
        "torch.device",
        "_codecs.encode",
        *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
        *(f"torch.{name}Storage" for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")),
        *(f"torch.{name}Storage" for name in ("Byte", "Bool")),
        *(f"torch.cuda.{name}Storage" for name in ("Float", "Double", "Half", "Long", "Int", "Byte", "Bool")),
    }
)
"""Names that state dicts and optimizer states are made of."""

BOOKKEEPING = (
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.set",
    "builtins.str",
    "builtins.tuple",
    "typing.Any",
)
"""Names, and modules below, of options and logs that checkpoints carry: what stands there is dropped."""

BOOKKEEPING_MODULES = (
    "lightning",
    "lightning_fabric",
    "mmcv",
    "mmengine",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
)

RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Inert:
    """Takes the place of an object that nobody needs; it keeps nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """An empty one, whatever it is asked for."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


@dataclass
class Findings:
    """What the instructions of a pickle say.

    Attributes:
        names: dotted names it refers to.
        numbers: elements of the storages it asks for, of all together.
        first: the first whole number in it.
    """

    names: set[str] = field(default_factory=set)
    numbers: int = 0
    first: int | None = None

    def inert(self) -> list[str]:
        """The names for which `Inert` stands in."""
        return sorted(name for name in self.names if _bookkeeping(name))

    def refused(self) -> list[str]:
        """The names that are neither data nor known bookkeeping."""
        return sorted(name for name in self.names if name not in TENSORS and not _bookkeeping(name))


def _bookkeeping(name: str) -> bool:
    return name in BOOKKEEPING or name.split(".", 1)[0] in BOOKKEEPING_MODULES


def scan(file: BinaryIO) -> Findings:
    """Read the instructions of one pickle, to its end, without following any.

    Raises:
        ValueError: they are damaged, of a kind that `torch.save` does not write, or too many.
    """
    found, last = Findings(), 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_INSTRUCTIONS:
            raise ValueError(f"its index has more than {MAX_INSTRUCTIONS:,} instructions, far more than weights need")
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            found.names.add(f"{RENAMED_MODULES.get(module, module)}.{name}")
        elif opcode.name in ("INST", "OBJ", "STACK_GLOBAL", "NEWOBJ_EX") or opcode.name.startswith("EXT"):
            raise ValueError(f"it has the pickle instruction {opcode.name}, which torch.save does not write")
        elif opcode.name == "BINPERSID":
            found.numbers += last
        elif isinstance(argument, int) and "PUT" not in opcode.name and "GET" not in opcode.name:
            last = argument
            if opcode.name != "PROTO" and found.first is None:
                found.first = argument
    return found
