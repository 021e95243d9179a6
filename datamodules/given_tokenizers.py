"""Tokenizers that a datamodule is given instead of those of its options: a checkpoint's, or that of a resumed run."""

from collections.abc import Callable

from datamodules.errors import UserError
from datamodules.prepare import NewTokenizer
from datamodules.tokenizers import Tokenizer


class GivenTokenizers:
    """What a datamodule has of this: a tokenizer that it is given comes before one that it would train.

    Attributes:
        tokenizer: the tokenizer that is used, after ``setup``.
    """

    tokenizer: Tokenizer
    _checkpoint_tokenizer: Tokenizer | None = None
    _trained_tokenizer: Tokenizer | None = None

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses a checkpoint's tokenizer and trains none. A tokenizer that the options name must equal it.

        Call it before ``setup``.
        """
        self._checkpoint_tokenizer = tokenizer

    def named_tokenizer(self, name: str, opened: Callable[[], Tokenizer], vocab_size: int | None = None) -> Tokenizer:
        """The tokenizer that the options name; if it cannot be opened, the checkpoint's, as no other would be accepted.

        Args:
            name: the option.
            opened: opens what it names.
            vocab_size: the size that the options ask for; None for any.

        Raises:
            UserError: it cannot be opened and there is no checkpoint, or it has another size.
        """
        try:
            tokenizer = opened()
        except UserError:
            if self._checkpoint_tokenizer is None:
                raise
            tokenizer = self._checkpoint_tokenizer
        if vocab_size not in (None, tokenizer.vocab_size):
            raise UserError(
                f"the tokenizer {name} has {tokenizer.vocab_size} tokens, not vocab_size {vocab_size}; leave that out."
            )
        return tokenizer

    def reuse_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Uses the tokenizer of the run that is resumed, if the options ask for training one that may be equal to it.

        Training again may give another unigram tokenizer. Call it before ``setup``.
        """
        self._trained_tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer, after ``setup``."""
        return self.tokenizer.vocab_size

    def _reusable(self, option: Tokenizer | NewTokenizer) -> Tokenizer | None:
        """The tokenizer of the run that is resumed, if training may have given it."""
        trained = self._trained_tokenizer
        return trained if trained and isinstance(option, NewTokenizer) and option.may_result_in(trained) else None

    def _check_same(self, option: Tokenizer | NewTokenizer, tokenizer: Tokenizer) -> None:
        """Refuses an option that names another tokenizer than the checkpoint's. One that asks for training is fine."""
        if isinstance(option, Tokenizer) and option.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the data's tokenizer option names one of {option.vocab_size} tokens, but the checkpoint has its own, "
                f"of {tokenizer.vocab_size}, which differs; leave the option out or give the one of that run."
            )
