"""How the files of published checkpoints come here, and which are refused."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo import zoo_file
from tests.zoo.helpers import Behaviour, own_zoo, serving, zoo_model

QUIET = Console(quiet=True)
CONTENT = bytes(range(256)) * 9000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """A server from which the entry ``mine`` downloads ``weights.pth``, and an empty cache."""
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as url:
        own_zoo(tmp_path, monkeypatch, {"mine": zoo_model(f"{url}/weights.pth")})
        yield behaviour


def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    """The same entry with a published hash."""
    text = (tmp_path / "own-zoo" / "mine.yaml").read_text()
    url = next(line for line in text.splitlines() if "http://127" in line).split("url: ")[1]
    own_zoo(tmp_path, monkeypatch, {"mine": zoo_model(url, hash=digest)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "zoo" / "mine" / "weights.pth"


def beside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name != ".lock")


def test_a_file_is_downloaded_once(server: Behaviour, path: Path) -> None:
    assert zoo_file("mine", QUIET) == path
    assert path.read_bytes() == CONTENT
    assert zoo_file("mine", QUIET) == path
    assert len(server.asked) == 1
    assert beside(path) == ["weights.pth", "weights.pth.sha256"]
    assert path.with_name("weights.pth.sha256").read_text().strip() == hashlib.sha256(CONTENT).hexdigest()


def test_the_licence_is_shown_before_a_download_alone(server: Behaviour) -> None:
    said = io.StringIO()
    zoo_file("mine", Console(file=said, width=200))
    assert said.getvalue().splitlines()[0] == "mine: licence MIT, https://example.org"
    again = io.StringIO()
    zoo_file("mine", Console(file=again))
    assert again.getvalue() == ""


@pytest.mark.parametrize("etag", ['"one"', None])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server: Behaviour, path: Path, ranges: bool, etag: str | None) -> None:
    server.ranges, server.etag, server.cut = ranges, etag, 1_500_000
    with pytest.raises(UserError, match=r"cannot download .*1,500,000 of 2,304,000 bytes arrived\): 2 MB are here"):
        zoo_file("mine", QUIET)
    assert not path.exists()
    assert path.with_name("weights.pth.part").stat().st_size == 1_500_000
    server.cut = None
    assert zoo_file("mine", QUIET).read_bytes() == CONTENT
    assert beside(path) == ["weights.pth", "weights.pth.sha256"]
    asked = server.asked[-1].get("Range")
    assert asked == ("bytes=1500000-" if etag else None)  # without a version it could be another file by now


def test_a_file_that_changed_meanwhile_starts_again(server: Behaviour) -> None:
    server.cut = 1_500_000
    with pytest.raises(UserError):
        zoo_file("mine", QUIET)
    server.cut, server.etag, server.content = None, '"two"', bytes(2_000_000)
    assert zoo_file("mine", QUIET).read_bytes() == bytes(2_000_000)


def test_a_part_that_is_longer_than_the_file_starts_again(server: Behaviour, path: Path) -> None:
    server.cut = 1_500_000
    with pytest.raises(UserError):
        zoo_file("mine", QUIET)
    server.cut = None
    path.with_name("weights.pth.part").write_bytes(bytes(3_000_000))  # the server answers 416
    assert zoo_file("mine", QUIET).read_bytes() == CONTENT


def test_another_part_than_was_asked_for_is_not_taken(server: Behaviour, path: Path) -> None:
    server.cut = 1_500_000
    with pytest.raises(UserError):
        zoo_file("mine", QUIET)
    server.cut, server.shifted = None, 1000
    with pytest.raises(UserError, match="another part than was asked for"):
        zoo_file("mine", QUIET)
    assert beside(path) == []
    assert zoo_file("mine", QUIET).read_bytes() == CONTENT


def test_a_file_without_announced_length_is_taken_if_it_is_whole(server: Behaviour) -> None:
    server.length = False
    assert zoo_file("mine", QUIET).read_bytes() == CONTENT


def test_a_cut_archive_without_announced_length_is_refused(server: Behaviour, path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", bytes(100_000))
    server.content, server.length, server.cut = stream.getvalue(), False, 50_000
    with pytest.raises(UserError, match=r"is not whole: its end is missing; it came from http.* and was removed"):
        zoo_file("mine", QUIET)
    assert beside(path) == []
    server.cut = None
    assert zipfile.is_zipfile(zoo_file("mine", QUIET))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>Not here</html>", "text/html; charset=utf-8"),
        (b"\n  <html><body>Virus scan warning</body></html>", "application/octet-stream"),
        (b"quota exceeded", "text/html"),
    ],
)
def test_a_web_page_is_no_checkpoint(server: Behaviour, path: Path, content: bytes, kind: str) -> None:
    server.content, server.kind = content, kind
    with pytest.raises(UserError, match="answered with a web page, not a checkpoint: open it in a browser") as error:
        zoo_file("mine", QUIET)
    assert str(path) in str(error.value)
    assert beside(path) == []


@pytest.mark.parametrize("kind", ["sha256", "md5"])
@pytest.mark.parametrize("digits", [8, 32])
def test_the_published_hash_is_checked(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path, kind: str, digits: int
) -> None:
    true = hashlib.new(kind, CONTENT).hexdigest()[:digits]
    wrong = ("0" if true[0] != "0" else "1") + true[1:]
    hashed(tmp_path, monkeypatch, f"{kind}:{wrong}")
    with pytest.raises(UserError, match=f"not the published file: its {kind} begins with {true}, not {wrong}"):
        zoo_file("mine", QUIET)
    assert beside(path) == []
    hashed(tmp_path, monkeypatch, f"{kind}:{true}")
    assert zoo_file("mine", QUIET).read_bytes() == CONTENT


def test_a_file_that_changed_is_refused(server: Behaviour) -> None:
    zoo_file("mine", QUIET).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not what was downloaded"):
        zoo_file("mine", QUIET)


def test_a_file_put_there_by_hand_is_held_to_the_published_hash_alone(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert zoo_file("mine", QUIET).read_bytes() == b"mine"
    assert beside(path) == ["weights.pth"]
    hashed(tmp_path, monkeypatch, f"sha256:{'0' * 64}")
    with pytest.raises(UserError, match="is not the published file"):
        zoo_file("mine", QUIET)
    assert path.is_file()  # what a person put there stays
    hashed(tmp_path, monkeypatch, "sha256:" + hashlib.sha256(b"mine").hexdigest())
    assert zoo_file("mine", QUIET) == path
    for content, why in ((b"<html>", "is a web page"), (b"", "is not whole"), (b"PK\x03\x04half", "is not whole")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=why):
            zoo_file("mine", QUIET)
    assert server.asked == []


def test_no_network_is_one_line_that_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    for url, reason in (("http://127.0.0.1:9/weights.pth", "refused"), ("http://nowhere.invalid/weights.pth", "")):
        own_zoo(tmp_path, monkeypatch, {"mine": zoo_model(url)})
        with pytest.raises(UserError, match=rf"cannot download {url} \(.*{reason}.*\): check the network") as error:
            zoo_file("mine", QUIET)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert beside(path) == []


def test_errors_of_the_server_are_named(server: Behaviour, path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"\(404 Not Found\)"):
        zoo_file("mine", QUIET)
    assert beside(path) == []


def test_a_folder_that_cannot_be_written_is_named(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write .*weights.pth"):
        zoo_file("mine", QUIET)


def test_files_behind_a_page_are_left_to_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    url = "https://drive.example.org/file/view"
    own_zoo(tmp_path, monkeypatch, {"mine": zoo_model(url, name="weights.pth", browser=True)})
    with pytest.raises(UserError, match=f"open {url} in a browser and save the file as .*weights.pth"):
        zoo_file("mine", QUIET)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert zoo_file("mine", QUIET) == path


def test_two_that_want_the_same_file_fetch_it_once(server: Behaviour) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(zoo_file("mine", QUIET))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert found[0].read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_path_of_ones_own_is_used_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    own_zoo(tmp_path, monkeypatch, {"mine": zoo_model("../weights.pth")})
    with pytest.raises(UserError, match=r"zoo checkpoint mine: .*weights.pth does not exist"):
        zoo_file("mine", QUIET)
    (tmp_path / "weights.pth").write_bytes(b"mine")
    (tmp_path / "weights.pth.sha256").write_text("something of somebody else's")
    assert zoo_file("mine", QUIET).read_bytes() == b"mine"
    assert not (tmp_path / "cache").exists()
