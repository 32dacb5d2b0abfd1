"""The processes that work together, on one machine or many: who they are, how they start, what they tell each other."""

from ssl_toolkit.processes.world import World, agree, console_of, current_world, from_first, in_any_process, leave

__all__ = ["World", "agree", "console_of", "current_world", "from_first", "in_any_process", "leave"]
