"""Checks that all processes of a run have the same text and the same tokenizer."""

from torch import distributed

from datamodules.errors import UserError

_REMEDIES = {
    "data": "read different texts: give all of them the same files (embedded text is of a version of Python).",
    "tokenizer": (
        "have trained different tokenizers, each in a cache of its own: give them one --data.cache_dir that they share,"
        " or a file of `python -m lit_gpt tokenizer train` as --data.tokenizer."
    ),
}


def check_agreement(fingerprints: dict[str, str]) -> None:
    """Raises the same error in every process if the fingerprints of data or tokenizer differ among processes.

    They can differ where each machine has a cache of its own: training a unigram tokenizer twice gives two
    tokenizers. All processes must call this.

    Raises:
        UserError: names what differs and how to make it equal.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    of_all: list[dict[str, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(of_all, fingerprints)
    for name, remedy in _REMEDIES.items():
        if len({of_rank[name] for of_rank in of_all}) > 1:
            raise UserError(f"the {len(of_all)} processes of this run {remedy}")
