"""Options of the methods for small corpora, beside those of the GPT."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lit_gpt.config import GPTConfig


@dataclass
class ExtendedGPTConfig(GPTConfig):
    """A GPT with methods for small corpora, all off by default. Raises a UserError for a combination that makes no
    model.
    """

    members: int = 1
    """Number of networks of this shape that are trained side by side, each with its own loss and initial weights. The
    prediction is the mean of their logits (a deep ensemble). Time and memory grow with the number. ``train/loss`` is
    the mean of the members' losses, ``val/loss`` the loss of their common prediction."""
    token_parts: bool = False
    """Add to a token's embedding those of its parts that other tokens share: the word in lower case, its case and
    leading space, its first and last letters. Rare tokens then learn from frequent ones."""
    n_parts: int | None = None
    """Number of parts that tokens share; left out, the data's tokenizer decides."""
    ngrams: list[int] = field(default_factory=list)
    """Also add an embedding of the n-gram that ends at each position, for each of these n, such as [2, 3, 4]. Costs
    hardly any FLOPs; for small networks and short trainings."""
    ngram_rows: int = 131072
    """Rows of the table that n-grams are hashed into."""
    ngram_width: int = 32
    """Channels of an n-gram's embedding, before a linear layer brings those of all n into the residual stream."""
    kneser_ney: int = 0
    """Mix the predictions with Kneser-Ney probabilities from n-gram counts of the training text, up to this n, such as
    3; 0 for none. Counting takes seconds and training does not change. ``train/loss`` is the network's alone;
    ``train_eval/loss`` is too low, because its text has been counted."""
    kneser_ney_share: float = 0.2
    """Weight of the Kneser-Ney probabilities in the mixture."""

    @property
    def matrix_parameters(self) -> int:
        """Parameters in the matrices of all members."""
        parts = ((self.n_parts or 0) + 1) * self.n_embd * self.token_parts
        ngrams = (self.ngram_rows + len(self.ngrams) * self.n_embd) * self.ngram_width * bool(self.ngrams)
        return self.members * (super().matrix_parameters + parts + ngrams)

    def _bounds(self) -> tuple[dict[str, int], dict[str, int]]:
        least, most = super()._bounds()
        least = least | dict.fromkeys(("members", "n_parts", "ngram_rows", "ngram_width"), 1) | {"kneser_ney": 0}
        return least, most | {"members": 1_000, "kneser_ney": 1_000, "ngrams": 1_000}

    def _wrong_values(self) -> Iterator[str]:
        yield from super()._wrong_values()
        if any(n < 2 for n in self.ngrams):
            yield f"ngrams {self.ngrams} holds an n below 2: the token itself has an embedding already."
        if len(set(self.ngrams)) < len(self.ngrams):
            yield f"ngrams {self.ngrams} holds an n twice: give each once."
        if self.kneser_ney and self.kneser_ney < 2:
            yield f"kneser_ney is {self.kneser_ney}: give 0 for none, or at least 2."
        if not 0 < self.kneser_ney_share < 1:
            yield f"kneser_ney_share is {self.kneser_ney_share}: give a share above 0 and below 1."
