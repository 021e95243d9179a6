"""Datasets of the Hugging Face hub, each at one revision, read with the ``hf`` extra."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.downloads import check_online
from datamodules.errors import UserError
from datamodules.files import default_cache_dir, write_text
from datamodules.reading import as_text, needs_hf_extra, normalised, unknown_column
from datamodules.sources import Source

#: Four million titles, of which the headline challenge has 100,000. Refreshed now and then, so its revision is fixed.
HACKER_NEWS = "hf:julien040/hacker-news-posts@9e21b0f3"


@dataclass(frozen=True)
class HubSource(Source):
    """The ``train`` split of a dataset; a document is a row's text in one column.

    The first reading writes the commit and the SHA-256 of the texts to a record in ``folder``. Later ones ask for that
    commit and do not compute the SHA-256 again, as the files of a commit never change.

    Args:
        name: the name of the source in messages.
        dataset: the dataset's name on the hub.
        revision: a branch, a tag, or the beginning of a commit's hash.
        column: the column of text.
        strip: whether to remove white space at both ends of each document.
        folder: the folder of the record.
    """

    name: str
    dataset: str
    revision: str
    column: str
    strip: bool
    folder: Path

    def fingerprint(self) -> str:
        """See `Source`. It is of the texts, because the hub may store the same rows in different files."""
        record = self._record()
        if "sha256" not in record:
            digest = hashlib.sha256()
            for text in self._texts(record["commit"]):
                digest.update(json.dumps(text).encode())
            record["sha256"] = digest.hexdigest()
            write_text(self.record_path, json.dumps(record))
        return hashlib.sha256(json.dumps([record["sha256"], self.strip]).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """See `Source`.

        Raises:
            UserError: no `hf` extra, no such dataset or column, or no network.
        """
        texts = self._texts(self._record()["commit"])
        return (text for text in (text.strip() if self.strip else text for text in texts) if text)

    def _texts(self, commit: str) -> Iterator[str]:
        try:
            import datasets
        except ImportError:
            raise needs_hf_extra(f"the data set {self.dataset}") from None
        try:
            rows = datasets.load_dataset(self.dataset, split="train", revision=commit)
        except Exception as error:  # its libraries raise errors of their own, without a common class
            raise self._unreadable(error) from None
        if self.column not in rows.column_names:
            raise unknown_column(self.dataset, self.column, rows.column_names)
        for batch in rows.select_columns([self.column]).iter(batch_size=1000):
            yield from (normalised(as_text(v, self.column, self.dataset)) for v in batch[self.column] if v is not None)

    def _record(self) -> dict[str, Any]:
        if self.record_path.exists():
            return json.loads(self.record_path.read_text(encoding="utf-8"))
        check_online(self.name)
        try:
            from huggingface_hub import dataset_info, list_repo_commits
        except ImportError:
            raise needs_hf_extra(f"the data set {self.dataset}") from None
        try:
            # The hub knows a whole hash, a branch or a tag, but not the beginning of a hash.
            commits = [commit.commit_id for commit in list_repo_commits(self.dataset, repo_type="dataset")]
            matches = [commit for commit in commits if commit.startswith(self.revision)]
            return {"commit": matches[0] if matches else dataset_info(self.dataset, revision=self.revision).sha}
        except Exception as error:  # as above
            raise self._unreadable(error) from None

    @property
    def record_path(self) -> Path:
        """Where the record is. The file exists once all texts have been read."""
        key = json.dumps([self.dataset, self.revision, self.column])
        name = f"{self.dataset.replace('/', '--')}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        return self.folder / name

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"the data set {self.dataset} at {self.revision} could not be read from the hub: {error}")


def open_hub(spec: str, column: str | None, strip: bool, folder: Path | None = None) -> HubSource:
    """The source for ``hf:OWNER/NAME@REVISION``. Without revision or column it raises `UserError`."""
    dataset, _, revision = spec.removeprefix("hf:").partition("@")
    if not revision:
        raise UserError(f"{spec} names no revision; write hf:OWNER/NAME@REVISION, so that the text cannot change.")
    if column is None:
        raise UserError(f"{spec} is a table; set documents to column, and column to the one that holds the text.")
    return HubSource(spec, dataset, revision, column, strip, folder or default_cache_dir() / "downloads")
