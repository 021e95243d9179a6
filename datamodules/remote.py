"""Files in object storage, by URLs such as ``s3://bucket/folder``. fsspec reads them; retries and messages are ours."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from datamodules.errors import UserError

T = TypeVar("T")

#: Seconds before each further try, about 15 in all; each is multiplied by 0.5 to 1.5, so that processes spread out.
_WAITS = (0.1, 0.5, 1.5, 4.0, 9.0)
#: What pip installs for a protocol that fsspec does not bring along.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "hf": "huggingface_hub",
    "oci": "ocifs",
    "webdav": "webdav4",
}


def is_url(path: object) -> bool:
    """Whether an option names a place in storage, as ``PROTOCOL://PATH``, and no folder."""
    return isinstance(path, str) and "://" in path


def joined_url(url: str, name: str) -> str:
    """The URL of a file or folder inside of another. The slashes of ``memory://`` alone belong to the protocol."""
    return f"{_trimmed(url)}{'' if _trimmed(url).endswith('://') else '/'}{name}"


def _trimmed(url: str) -> str:
    protocol, _, path = url.partition("://")
    return f"{protocol}://{path.rstrip('/')}"


class DamageError(Exception):
    """What was read is not what was written."""


class RemoteFolder:
    """A folder in storage. Every request that fails is tried again, and it pickles as its URL.

    Args:
        url: where it is.
    """

    def __init__(self, url: str) -> None:
        self.url = _trimmed(url)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from ``start`` up to ``end``."""
        return self.tried(name, lambda fs, path: bytes(fs.cat_file(path, start=start, end=end)))

    def sizes(self) -> dict[str, int | None]:
        """The bytes of each file, by name; None where the storage does not tell. Empty: there is no such folder."""

        def listed(fs: Any, path: str) -> dict[str, int | None]:
            fs.invalidate_cache()
            try:
                entries = fs.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            return {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in entries if entry["type"] == "file"}

        return self.tried("", listed)

    def write(self, name: str, source: Path) -> None:
        """Copies a file of this machine into the folder."""

        def copy(fs: Any, path: str) -> None:
            try:
                fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                fs.put_file(str(source), path)
            except FileNotFoundError as error:  # of the folder: the file is to be made
                raise PermissionError(_reason(error)) from None

        self.tried(name, copy)

    def tried(self, name: str, act: Callable[[Any, str], T]) -> T:
        """What ``act`` returns, given the file system and the path of a file. An error has it tried again.

        Raises:
            UserError: it failed six times, or will always: the file is missing, or permission to read it.
        """
        url = joined_url(self.url, name) if name else self.url
        for wait in (*_WAITS, None):
            try:
                return act(*_opened(url))
            except UserError:
                raise
            except FileNotFoundError:
                raise UserError(
                    f"{url} is missing: copy it there again, or remove the folder to have it made."
                ) from None
            except (PermissionError, NotImplementedError) as error:
                raise UserError(f"{url} cannot be used ({_reason(error)}): check the permissions there.") from None
            except Exception as error:  # each library of storage raises errors of its own
                if wait is None and isinstance(error, DamageError):
                    raise UserError(
                        f"{url} is damaged ({error}): copy it there again, or remove that folder to have it made again."
                    ) from None
                if wait is None:
                    raise UserError(
                        f"{url} could not be used in {len(_WAITS) + 1} tries ({_reason(error)}): check the network and "
                        "the storage, and start again."
                    ) from None
                time.sleep(wait * (0.5 + random.Random().random()))
        raise AssertionError


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. fsspec makes one for each process."""
    import fsspec

    protocol = url.partition("://")[0]
    if not protocol:
        raise UserError(f"{url} names no protocol: give a folder, or a URL such as s3://bucket/folder.")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        fix = f"pip install {package}" if package else str(error)
        raise UserError(f"{url} needs a package that is not installed: {fix}.") from None
    except ValueError as error:
        raise UserError(f"{url} cannot be used ({_reason(error)}): give a folder or a URL that fsspec knows.") from None


def _reason(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
