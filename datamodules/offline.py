"""Which texts and tokenizers are on this machine, and which would have to be downloaded."""

import hashlib
import os
import tempfile
from pathlib import Path

from datamodules.downloads import DOWNLOADS
from datamodules.files import cache_folder

_RANKS = "https://openaipublic.blob.core.windows.net"
#: The files that tiktoken reads for an encoding.
ENCODING_FILES = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "cl100k_base": ("encodings/cl100k_base.tiktoken",),
    "o200k_base": ("encodings/o200k_base.tiktoken",),
}


def source_needs_network(spec: str, cache_dir: str | Path | None = None) -> bool:
    """Whether a source is a data set of the hub, or a download that has not been made on this machine.

    Args:
        spec: a name, file, folder or glob, as for `sources.open_source`.
        cache_dir: folder of the downloads; None is the default one.
    """
    if spec in DOWNLOADS:
        return not (cache_folder(cache_dir) / "downloads" / f"{spec}.txt").exists()
    return spec == "hacker_news" or spec.startswith("hf:")


def encoding_needs_network(name: str) -> bool:
    """Whether a tokenizer is an encoding of tiktoken whose files are not in tiktoken's cache."""
    temporary = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", temporary))
    keys = [hashlib.sha1(f"{_RANKS}/{file}".encode()).hexdigest() for file in ENCODING_FILES.get(name, ())]
    return not all(folder and (Path(folder) / key).exists() for key in keys)
