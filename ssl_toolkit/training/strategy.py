"""How Lightning places a run on the processes there are."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from ssl_toolkit.processes.world import World, meeting_point
from ssl_toolkit.training.parts import Parts


class Placed(ClusterEnvironment):
    """Processes that are there already, and who they are: Lightning starts none and looks for no cluster itself."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        """Always."""
        return True

    @property
    def main_address(self) -> str:
        """Of process 0."""
        return meeting_point()[0]

    @property
    def main_port(self) -> int:
        """Of process 0."""
        return meeting_point()[1]

    @staticmethod
    def detect() -> bool:
        """Never: it is handed over."""
        return False

    def world_size(self) -> int:
        """Processes."""
        return self.world.size

    def set_world_size(self, size: int) -> None:
        """Nothing: it is known."""

    def global_rank(self) -> int:
        """Of this process."""
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is known."""

    def local_rank(self) -> int:
        """Of this process on its machine."""
        return self.world.local_rank

    def node_rank(self) -> int:
        """Of this machine."""
        return self.world.rank // self.world.local_size


def placement(parts: Parts) -> dict[str, Any]:
    """The arguments of `lightning.pytorch.Trainer` that say where it runs.

    DDP averages gradients over the processes. Buffers are not sent around at every step, as DDP would by itself:
    running statistics are either the same everywhere (SyncBatchNorm) or train nothing, and process 0's are kept.
    """
    world, device = parts.world, parts.device
    strategy: Strategy | str = "auto"
    if world.size > 1:
        strategy = DDPStrategy(
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    return {
        "accelerator": {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type],
        "devices": world.local_size if device.index is None or world.size > 1 else [device.index],
        "num_nodes": world.nodes,
        "strategy": strategy,
        "plugins": [Placed(world)],
    }
