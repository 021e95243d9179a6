"""What the processes of a run must have in common before they may share its steps."""

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
    """Refuses, in every process alike, to train one model on ids that mean one thing here and another there.

    A unigram tokenizer comes out differently each time that it is trained. All processes must call it.

    Raises:
        UserError: names what differs, and how it becomes the same.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    found: list[dict[str, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(found, fingerprints)
    for name, remedy in _REMEDIES.items():
        if len({prints[name] for prints in found}) > 1:
            raise UserError(f"The {len(found)} processes of this run {remedy}")
