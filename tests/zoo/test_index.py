"""The list of published checkpoints, and how their files come here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo import OFFICIAL_ARCHITECTURES, ZOO, Published, published, zoo_file

QUIET = Console(quiet=True)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the entry ``mine`` downloads ``weights.pth`` from, and an empty cache."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(bytes(range(256)) * 9000)
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        monkeypatch.setitem(ZOO, "mine", Published("resnet50", url, 0.0, 0.0))
        yield folder
        server.shutdown()


def test_entries_name_architectures_that_can_be_built() -> None:
    for entry in ZOO.values():
        assert entry.arch in OFFICIAL_ARCHITECTURES
        assert entry.url.startswith("https://")
        assert entry.arch in entry.url
    assert create_backbone(OFFICIAL_ARCHITECTURES[ZOO["vicregl_resnet50_alpha0p9"].arch]).num_features == 2048


def test_a_file_is_downloaded_once(served: Path) -> None:
    path = zoo_file("mine", QUIET)
    content = (served / "weights.pth").read_bytes()
    assert path.read_bytes() == content
    (served / "weights.pth").unlink()
    assert zoo_file("mine", QUIET) == path
    assert sorted(p.name for p in path.parent.iterdir()) == ["weights.pth", "weights.pth.sha256"]


def test_a_file_that_changed_is_refused(served: Path) -> None:
    path = zoo_file("mine", QUIET)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not what was downloaded"):
        zoo_file("mine", QUIET)


def test_a_file_put_there_by_hand_is_taken(served: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "zoo" / "weights.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert zoo_file("mine", QUIET).read_bytes() == b"mine"


def test_a_download_that_fails_says_where_to_put_the_file(served: Path, tmp_path: Path) -> None:
    (served / "weights.pth").unlink()
    with pytest.raises(UserError, match=r"cannot download http.*put the file at") as error:
        zoo_file("mine", QUIET)
    assert str(tmp_path / "cache" / "zoo" / "weights.pth") in str(error.value)
    assert not list((tmp_path / "cache" / "zoo").glob("*"))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'vicregl_resnet50_alpha0p9'"):
        published("vicregl_resnet50_alpha09")
