"""Images that could not be read, named."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ssl_toolkit.files import disk_full


class UnreadableFile:
    """Names each image that could not be read, on the console and in a file of the run.

    Args:
        path: of the file, made with the first line; a resumed run adds to it what is new.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path, self.console = path, console
        self._known = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()

    def __call__(self, message: str) -> None:
        """Take up one line; of a name that is not UTF-8 what can be written."""
        message = message.encode("utf-8", "backslashreplace").decode()
        self.console.print(f"skipped: {message}", highlight=False, markup=False, soft_wrap=True)
        if message not in self._known:
            self._known.add(message)
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(message + "\n")
            except OSError as error:
                if not disk_full(error):  # it is on the console
                    raise
