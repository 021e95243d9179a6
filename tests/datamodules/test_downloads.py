"""Downloads against a server that misbehaves."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules.downloads import Download, fetch
from datamodules.errors import UserError

CONTENT = bytes(range(256)) * 2000


class Server(ThreadingHTTPServer):
    """Serves CONTENT; a test sets what goes wrong."""

    daemon_threads = True
    cuts: list[int]  # bytes sent before each cut, first to last
    failures: list[int]  # statuses answered before anything else
    honours_range = True
    content = CONTENT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))  # type: ignore[attr-defined]
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
        elif self.server.failures:
            self.send_error(self.server.failures.pop(0))
        else:
            self._send()

    def _send(self) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.honours_range else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.cuts, running.failures, running.requests = [], [], []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def wanted(server: Server, path: str = "/file") -> Download:
    return Download(server.url + path, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def get(server: Server, folder: Path, path: str = "/file") -> Path:
    return fetch("novel", wanted(server, path), folder, wait=lambda _: None)


def test_fetches_once(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert path.name == "novel.txt"
    assert get(server, tmp_path / "new") == path
    assert len(server.requests) == 1  # type: ignore[attr-defined]
    assert not list((tmp_path / "new").glob("*.part"))


def test_resumes_after_cuts(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 70_000, 0]
    assert get(server, tmp_path).read_bytes() == CONTENT
    ranges = [wanted for _, wanted in server.requests]  # type: ignore[attr-defined]
    assert ranges == [None, "bytes=1000-", "bytes=71000-", "bytes=71000-"]


def test_a_later_run_continues_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, *[0] * 4]
    with pytest.raises(UserError, match=r"could not be downloaded from .* early.*path of a copy"):
        get(server, tmp_path)
    assert (tmp_path / "novel.part").read_bytes() == CONTENT[:100_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("/file", "bytes=100000-")  # type: ignore[attr-defined]


def test_a_server_that_ignores_range_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.honours_range = False
    server.cuts = [5000, 9000]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_redirects_keep_the_range(server: Server, tmp_path: Path) -> None:
    (tmp_path / "novel.part").write_bytes(CONTENT[:10])
    assert get(server, tmp_path, "/moved").read_bytes() == CONTENT
    assert server.requests == [("/moved", "bytes=10-"), ("/file", "bytes=10-")]  # type: ignore[attr-defined]


def test_another_file_under_the_same_name_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=r"novel from .* has SHA-256 \w{16}\.\.\., not"):
        get(server, tmp_path)
    assert not list(tmp_path.glob("novel.[pt]*"))
    server.content = CONTENT
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [10, len(CONTENT) + 10])
def test_a_shorter_or_longer_file_is_refused(server: Server, tmp_path: Path, size: int) -> None:
    server.content = (CONTENT * 2)[:size]
    with pytest.raises(UserError, match="SHA-256"):
        get(server, tmp_path)


def test_the_start_of_some_other_file_does_not_block_for_ever(server: Server, tmp_path: Path) -> None:
    (tmp_path / "novel.part").write_bytes(b"x" * 600)
    server.content = CONTENT[:500]  # 416: the server has less than we claim to hold
    with pytest.raises(UserError, match="SHA-256"):
        get(server, tmp_path)
    server.content = CONTENT
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_missing_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.failures = [404]
    with pytest.raises(UserError, match="the server answered 404 Not Found"):
        get(server, tmp_path)
    assert len(server.requests) == 1  # type: ignore[attr-defined]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures = [503, 500]
    assert get(server, tmp_path).read_bytes() == CONTENT
    server.failures = [503] * 9
    with pytest.raises(UserError, match="503"):
        get(server, tmp_path / "other")


def test_no_connection(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(UserError, match="Connection refused"):
        fetch("novel", Download("http://127.0.0.1:9/x", "0" * 64, 10), tmp_path, wait=waits.append)
    assert waits == [2, 4, 8, 16]


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(UserError, match=r"novel cannot be kept in .*folder \(Not a directory|File exists"):
        get(server, tmp_path / "folder")


def test_threads_that_start_together_download_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "novel.txt").read_bytes() == CONTENT
    assert len(server.requests) == 1  # type: ignore[attr-defined]
