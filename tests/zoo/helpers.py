"""A zoo of one's own, and a server that misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_toolkit.zoo.index import OWN_ZOO


def zoo_model(url: str | None, part: str = "backbone", **options: Any) -> dict[str, Any]:
    """A ResNet-50 of `own_zoo`; keys of `FileSpec` go to its file, others to the model."""
    of_file = {key: options.pop(key) for key in ("format", "hash", "name", "browser") if key in options}
    files = {} if url is None else {part: {"url": url, "format": "vicregl", **of_file}}
    return {"arch": "resnet50", "params": 23, "files": files, **options}


def own_zoo(folder: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Any], **shared: Any) -> Path:
    """Write a YAML of entries and point `OWN_ZOO` at it."""
    path = folder / "own-zoo" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"method": "Test", "paper": "https://example.org/paper", "source": "https://example.org", "license": "MIT"}
    path.write_text(yaml.safe_dump({**about, **shared, "models": models}))
    monkeypatch.setenv(OWN_ZOO, str(path.parent))
    return path


class Behaviour:
    """What a server does; tests change it.

    Attributes:
        content, kind: what it sends, as which content type.
        etag: the version it names; None names none.
        ranges: whether it knows ``Range``.
        cut: bytes after which it breaks off; None sends all.
        length: whether it says how much is coming.
        status: of its answers; None is as it should be.
        shifted: bytes by which the parts it sends begin too late.
        asked: the headers of the requests.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.kind, self.etag = content, "application/octet-stream", '"one"'
        self.ranges, self.length = True, True
        self.cut: int | None = None
        self.status: int | None = None
        self.shifted = 0
        self.asked: list[dict[str, str]] = []

    def part(self, headers: dict[str, str]) -> int:
        """Where to begin."""
        asked = headers.get("Range")
        if not self.ranges or asked is None or headers.get("If-Range") != self.etag:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-")) + self.shifted


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The address of a server of ``behaviour``, for the length of a ``with`` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = dict(self.headers.items())
            behaviour.asked.append(headers)
            start = behaviour.part(headers)
            if start >= len(behaviour.content) > 0 and start:
                self.send_error(416)
                return
            self.send_response(behaviour.status or (206 if start else 200))
            body = behaviour.content[start:]
            if behaviour.length:
                self.send_header("Content-Length", str(len(body)))
            if start:
                total = len(behaviour.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            self.send_header("Content-Type", behaviour.kind)
            self.end_headers()
            self.wfile.write(body if behaviour.cut is None else body[: behaviour.cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
