"""Downloads of public files by name: resumed after an interruption, checked by SHA-256, kept in the cache."""

import hashlib
import http
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from datamodules.errors import UserError
from datamodules.files import default_cache_dir, locked
from datamodules.progress import progress

_GITHUB = "https://raw.githubusercontent.com"
_ATTEMPTS = 5
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 16
_OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)
_NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


@contextmanager
def offline() -> Iterator[None]:
    """Inside, what is not on this machine is refused instead of downloaded (see `check_online`)."""
    token = _OFFLINE.set(True)
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def is_offline() -> bool:
    """Whether this is inside `offline`."""
    return _OFFLINE.get()


def check_online(what: str) -> None:
    """Raises `UserError` inside `offline`. Called before every download."""
    if is_offline():
        raise UserError(f"{what} is not on this machine, and nothing is downloaded now.")


@dataclass(frozen=True)
class Download:
    """A public file.

    Attributes:
        url: where it is.
        sha256: the checksum that it must have, in hex.
        size: its size in bytes.
    """

    url: str
    sha256: str
    size: int


DOWNLOADS = {
    "tiny_shakespeare": Download(
        f"{_GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1_115_394,
    ),
    "taylor_swift": Download(
        f"{_GITHUB}/karpathy/minbpe/master/tests/taylorswift.txt",
        "c2e39cb822d4ae0caac22152cefc306d466e31217a9c5524e493ad2b76792f57",
        185_768,
    ),
    "moby_dick": Download(
        f"{_GITHUB}/GITenberg/Moby-Dick--Or-The-Whale_2701/master/2701-0.txt",
        "baf9b04fcf6e0008f30eaaa6697277751448c1070b20175e0082f28cbb161fd3",
        1_276_201,
    ),
}


def fetch(name: str, file: Download, folder: Path | None = None, wait: Callable[[float], None] = sleep) -> Path:
    """The path of a file, which is downloaded now if it is not in the folder. Several processes may call it at once.

    The bytes that arrived before an interruption are kept in ``NAME.part``. The next attempt, now or in a later run,
    asks for the rest.

    Args:
        name: the name of the file, in the folder and in messages.
        file: its URL, size and checksum.
        folder: where it is kept; None is ``downloads`` in `default_cache_dir`.
        wait: called with the seconds to wait between two attempts.

    Raises:
        UserError: no connection after five attempts, an error of the server, or another SHA-256.
    """
    path = (folder or default_cache_dir() / "downloads") / f"{name}.txt"
    if path.exists():  # only complete files are renamed to this path
        return path
    check_online(name)
    part = path.with_suffix(".part")
    try:
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                _fetch_part(name, file, part, wait)
                _check(name, file, part)
                part.replace(path)
    except OSError as error:  # `_fetch_part` has turned errors of the network into UserErrors
        raise UserError(f"{name} cannot be kept in {path.parent} ({error.strerror}); set cache_dir.") from None
    return path


def _fetch_part(name: str, file: Download, part: Path, wait: Callable[[float], None]) -> None:
    with progress(f"Downloading {name}", file.size) as advance:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for size in _receive(file, part):
                    advance(size)
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink()  # it is longer than the file, so it belongs to another one
                elif error.code < 500 or attempt == _ATTEMPTS:
                    raise UserError(_advice(name, file, f"the server answered {error.code} {error.reason}")) from None
            except _NETWORK_ERRORS as error:
                if attempt == _ATTEMPTS:
                    raise UserError(_advice(name, file, getattr(error, "reason", None) or error)) from None
            wait(2.0**attempt)


def _receive(file: Download, part: Path) -> Iterator[int]:
    """Appends the missing bytes to ``part``, and yields the number of new bytes as they are written."""
    size = part.stat().st_size if part.exists() else 0
    if size >= file.size:
        return
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={size}-"} if size else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT  # some servers ignore Range and send the whole file
        with part.open("ab" if resumed else "wb") as out:
            while block := answer.read(_BLOCK):
                out.write(block)
                yield len(block)
        if answer.length:  # bytes that Content-Length promised and that did not come
            raise ConnectionError(f"the connection closed {answer.length:,} bytes early")


def _check(name: str, file: Download, part: Path) -> None:
    with part.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        part.unlink()
        raise UserError(
            f"the download of {name} from {file.url} has SHA-256 {sha256[:16]}..., not {file.sha256[:16]}...; it was "
            "removed. Try again, or give the path of a copy you trust as the source."
        )


def _advice(name: str, file: Download, reason: object) -> str:
    return (
        f"{name} could not be downloaded from {file.url}: {reason}. Try again (what arrived is kept), or give the path "
        "of a copy as the source."
    )
