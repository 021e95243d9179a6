"""Data sets of the Hugging Face hub, streamed, each at one commit; needs the ``hf`` extra.

A file of the data set is read over the network when its rows are wanted, and no copy is kept: what stays on the disk is
tokens. The text is read once for its size, once more to train a tokenizer, and once to encode it. A preparation that
was killed goes on with the file and the row that it was at.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.downloads import check_online
from datamodules.errors import UserError
from datamodules.files import default_cache_dir, write_text
from datamodules.reading import CHUNK, Cursor, Piece, as_text, cut, needs_hf_extra, normalised, unknown_column
from datamodules.sources import Source

#: Four million titles, of which the headline challenge has 100,000. Refreshed now and then, so its revision is fixed.
HACKER_NEWS = "hf:julien040/hacker-news-posts@9e21b0f3"
FORM = "hf:OWNER/NAME@REVISION or hf:OWNER/NAME/CONFIG/SPLIT@REVISION"


@dataclass(frozen=True)
class HubSource(Source):
    """A split of a data set; a document is a row's text in one column.

    The first use of a branch or tag writes the commit that it names to a record in ``folder``. Later ones read that
    commit. The files of a commit never change, so its hash stands for the text.

    Args:
        name: the name of the source in messages.
        dataset: the data set's name on the hub.
        config: the name of its configuration, which some call a subset; None where it has one only.
        split: the name of the split.
        revision: a branch, a tag, or the beginning of a commit's hash.
        column: the column of text.
        strip: whether to remove white space at both ends of each document.
        folder: the folder of the record.
    """

    name: str
    dataset: str
    config: str | None
    split: str
    revision: str
    column: str
    strip: bool
    folder: Path

    def fingerprint(self) -> str:
        """See `Source`. Nothing is read for it."""
        what = [self.dataset, self._commit(), self.config, self.split, self.column, self.strip]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """See `Source`.

        Raises:
            UserError: no `hf` extra, no such data set or column, or no network.
        """
        parts: list[str] = []
        for text, end in self.read(CHUNK, Cursor()):
            parts.append(text)
            if end:
                yield "".join(parts)
                parts = []

    def pieces(self, size: int = CHUNK) -> Iterator[Piece]:
        """See `Source`."""
        return self.read(size, Cursor())

    def read(self, size: int, cursor: Cursor) -> Iterator[Piece]:
        """See `Source`. The cursor counts rows of a file (``offset``), and pieces of a row (``skip``)."""
        has_text = cursor != Cursor()
        for text in self._texts(cursor):
            done, cursor.skip = cursor.skip, 0  # pieces of this row that were read before
            if not text:
                cursor.offset += 1
                continue
            for number, piece in enumerate(cut([text], size), 1):
                cursor.skip = number
                if piece.end:
                    cursor.offset, cursor.skip = cursor.offset + 1, 0
                if number > done:
                    has_text = True
                    yield piece
        if not has_text:
            raise UserError(f"the data set {self.name} has no text in column {self.column!r}; give another column.")

    def _texts(self, cursor: Cursor) -> Iterator[str]:
        """The text of each row from the cursor on, "" for a null. It moves the cursor to each next file."""
        rows = self._opened()
        try:
            for file in range(cursor.file, rows.num_shards):
                if file > cursor.file:
                    cursor.file, cursor.offset, cursor.skip = file, 0, 0
                of_file = rows.shard(num_shards=rows.num_shards, index=file)
                for batch in (of_file.skip(cursor.offset) if cursor.offset else of_file).iter(batch_size=1000):
                    yield from map(self._text, batch[self.column])
        except UserError:
            raise
        except Exception as error:  # its libraries raise errors of their own, without a common class
            raise self._unreadable(error) from None

    def _text(self, value: object) -> str:
        text = "" if value is None else normalised(as_text(value, self.column, self.dataset))
        return text.strip() if self.strip else text

    def _opened(self) -> Any:
        """The rows, not read yet: a `datasets.IterableDataset`."""
        commit = self._commit()
        check_online(self.name)
        try:
            import datasets
        except ImportError:
            raise needs_hf_extra(f"the data set {self.dataset}") from None
        try:
            rows = datasets.load_dataset(self.dataset, self.config, split=self.split, revision=commit, streaming=True)
            names = rows.column_names or list(next(iter(rows), {}))  # unknown before the first row of some formats
        except Exception as error:  # as above
            raise self._unreadable(error) from None
        if self.column not in names:
            raise unknown_column(self.dataset, self.column, names)
        return rows.select_columns([self.column])

    def _commit(self) -> str:
        """The commit's hash, from the record, or from the hub and then recorded."""
        if self.record_path.exists():
            return str(json.loads(self.record_path.read_text(encoding="utf-8"))["commit"])
        check_online(self.name)
        try:
            from huggingface_hub import dataset_info, list_repo_commits
        except ImportError:
            raise needs_hf_extra(f"the data set {self.dataset}") from None
        try:
            # The hub knows a whole hash, a branch or a tag, but not the beginning of a hash.
            commits = [commit.commit_id for commit in list_repo_commits(self.dataset, repo_type="dataset")]
            matches = [commit for commit in commits if commit.startswith(self.revision)]
            commit = str(matches[0] if matches else dataset_info(self.dataset, revision=self.revision).sha)
        except Exception as error:  # as above
            raise self._unreadable(error) from None
        write_text(self.record_path, json.dumps({"commit": commit}))
        return commit

    @property
    def record_path(self) -> Path:
        """Where the record is."""
        key = hashlib.sha256(json.dumps([self.dataset, self.revision]).encode()).hexdigest()[:16]
        return self.folder / f"{self.dataset.replace('/', '--')}-{key}.json"

    def _unreadable(self, error: Exception) -> UserError:
        said = " ".join(str(error).split("\n")[:2]).rstrip(".")  # the first line alone may name no choices
        fix = (
            "connect this machine, or prepare the tokens on one that is"
            if _is_of_network(error)
            else f"write it as {FORM}"
        )
        return UserError(f"the data set {self.name} could not be read from the hub ({said}): {fix}.")


def _is_of_network(error: Exception) -> bool:
    """Whether no answer came. An error with an answer, such as "not found", is an OSError too."""
    if getattr(error, "response", None) is not None:
        return False
    # The hub's library has its HTTP from httpx, whose errors of the network are no OSErrors.
    return isinstance(error, OSError) or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def open_hub(spec: str, column: str | None, strip: bool, folder: Path | None = None) -> HubSource:
    """The source for ``hf:OWNER/NAME[/CONFIG[/SPLIT]]@REVISION``; without a split it is ``train``.

    Raises:
        UserError: no revision, no column, or another form.
    """
    path, _, revision = spec.removeprefix("hf:").partition("@")
    parts = path.split("/")
    if not revision:
        raise UserError(f"{spec} names no revision; write {FORM}, so that the text cannot change.")
    if not all(parts) or len(parts) > 4:
        raise UserError(f"{spec} is no data set of the hub; write {FORM}.")
    if column is None:
        raise UserError(f"{spec} is a table; set documents to column, and column to the one that holds the text.")
    config, split = [*parts[2:], None, None][:2]
    config = None if config == "default" else config
    folder = folder or default_cache_dir() / "downloads"
    return HubSource(spec, "/".join(parts[:2]), config, split or "train", revision, column, strip, folder)
