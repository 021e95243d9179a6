"""Which texts and tokenizers are on this machine, and which would have to be downloaded."""

import hashlib
import os
import tempfile
from pathlib import Path

from datamodules.downloads import DOWNLOADS
from datamodules.files import cache_folder
from datamodules.hub import HACKER_NEWS, open_hub

_RANKS = "https://openaipublic.blob.core.windows.net"
#: The files that tiktoken reads for an encoding.
ENCODING_FILES = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "cl100k_base": ("encodings/cl100k_base.tiktoken",),
    "o200k_base": ("encodings/o200k_base.tiktoken",),
}


def source_needs_network(spec: str, column: str | None = None, cache_dir: str | Path | None = None) -> bool:
    """Whether a source is a download or a table of the hub that has not been read on this machine before.

    Args:
        spec: a name, file, folder or glob, as for `sources.open_source`.
        column: the column of a table of the hub.
        cache_dir: folder of the downloads; None is the default one.
    """
    folder = cache_folder(cache_dir) / "downloads"
    if spec in DOWNLOADS:
        return not (folder / f"{spec}.txt").exists()
    if spec == "hacker_news":
        return not open_hub(HACKER_NEWS, column or "title", False, folder).record_path.exists()
    if spec.startswith("hf:"):
        return "@" not in spec or column is None or not open_hub(spec, column, False, folder).record_path.exists()
    return False


def encoding_needs_network(name: str) -> bool:
    """Whether a tokenizer is an encoding of tiktoken whose files are not in tiktoken's cache."""
    temporary = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", temporary))
    keys = [hashlib.sha1(f"{_RANKS}/{file}".encode()).hexdigest() for file in ENCODING_FILES.get(name, ())]
    return not all(folder and (Path(folder) / key).exists() for key in keys)
