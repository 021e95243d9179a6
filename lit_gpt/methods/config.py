"""The fields of `ExtendedGPTConfig`: those of `GPTConfig`, and the options of the methods for small corpora."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lit_gpt.config import GPTConfig
from lit_gpt.methods.ngrams import ROW_START


@dataclass
class ExtendedGPTConfig(GPTConfig):
    """A GPT with methods for small corpora, all off by default. Raises a UserError for a value out of range or an
    invalid combination.
    """

    members: int = 1
    """Number of networks of this shape that are trained on the same batches, each with its own loss and initial
    weights. The prediction is the mean of their logits (a deep ensemble). Time and memory grow with the number.
    ``train/loss`` is the mean of the members' losses, ``val/loss`` the loss of the ensemble's prediction."""
    token_parts: bool = False
    """Add to a token's embedding the embeddings of its parts, which other tokens share: the word in lower case, its
    case and leading space, its first and last letters. Rare tokens then learn from frequent ones."""
    n_parts: int | None = None
    """Number of different parts that tokens share; null takes that of the data's tokenizer."""
    ngrams: list[int] = field(default_factory=list)
    """Add to each position the embedding of the n-gram that ends there, for each of these n, such as [2, 3, 4]. This
    costs hardly any FLOPs. It helps small networks in short trainings; over many epochs it overfits."""
    ngram_rows: int = 131072
    """Number of n-gram embeddings. N-grams are hashed, so that several share one."""
    ngram_width: int = 32
    """Channels of an n-gram's embedding; a linear layer maps those of all n to n_embd channels."""
    kneser_ney: int = 0
    """Mix the predictions with Kneser-Ney probabilities from n-gram counts of the training text, up to this n, such as
    3; 0 for none. Counting takes seconds, and training does not change. ``train/loss`` is that of the network alone.
    ``train_eval/loss`` is too low, because the counts contain its text."""
    kneser_ney_share: float = 0.2
    """Weight of the Kneser-Ney probabilities in the mixture; the network's has the rest."""
    kneser_ney_folds: int = 0
    """Train the network on top of the counts instead of mixing them in at the end: it reads their log-probabilities,
    adds its logits to them and learns how far to trust them; kneser_ney_share is not used. For short trainings, and
    high n such as 8. The training text is cut into this many folds, such as 8, and a row is trained with the counts of
    the others, so that they predict it no better than new text. 0: mix them in at the end."""

    @property
    def matrix_parameters(self) -> int:
        """See `GPTConfig.matrix_parameters`; of all members."""
        parts = ((self.n_parts or 0) + 1) * self.n_embd * self.token_parts
        ngrams = (self.ngram_rows + len(self.ngrams) * self.n_embd) * self.ngram_width * bool(self.ngrams)
        read = self.padded_vocab_size * self.n_embd * bool(self.kneser_ney_folds)
        return self.members * (super().matrix_parameters + parts + ngrams + read)

    def _limits(self) -> tuple[dict[str, int], dict[str, int]]:
        minimum, maximum = super()._limits()
        minimum = (
            minimum
            | dict.fromkeys(("members", "n_parts", "ngram_rows", "ngram_width"), 1)
            | {"kneser_ney": 0, "kneser_ney_folds": 0}
        )
        return minimum, maximum | {"members": 1_000, "kneser_ney": 1_000, "ngrams": 1_000, "kneser_ney_folds": 100}

    def _invalid_values(self) -> Iterator[str]:
        yield from super()._invalid_values()
        if any(n < 2 for n in self.ngrams):
            yield f"ngrams {self.ngrams} holds an n below 2: the token itself has an embedding already."
        if len(set(self.ngrams)) < len(self.ngrams):
            yield f"ngrams {self.ngrams} holds an n twice: give each once."
        if self.kneser_ney and self.kneser_ney < 2:
            yield f"kneser_ney is {self.kneser_ney}: give 0 for none, or at least 2."
        if not 0 < self.kneser_ney_share < 1:
            yield f"kneser_ney_share is {self.kneser_ney_share}: give a share above 0 and below 1."

    def _invalid_combinations(self) -> Iterator[str]:
        yield from super()._invalid_combinations()
        if not self.kneser_ney_folds:
            return
        if self.kneser_ney_folds < 2:
            yield f"kneser_ney_folds is {self.kneser_ney_folds}: give 0 for none, or at least 2."
        if not self.kneser_ney:
            yield f"kneser_ney_folds {self.kneser_ney_folds} has no counts to train on: set kneser_ney, such as 8."
        if self.block_size < ROW_START:
            yield f"kneser_ney_folds needs rows of at least {ROW_START} tokens: raise block_size, or set it to 0."
        if self.members > 1 or self.token_parts or self.ngrams:
            yield "kneser_ney_folds works without members, token_parts and ngrams: set it to 0, or leave them out."
