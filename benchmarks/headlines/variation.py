"""How far a Unigram vocabulary moves when it is trained again on the same titles: its sums run in parallel."""

from datamodules.tokenizers import train_tokenizer

TIMES, VOCABULARY = 3, 20_000


def variation(training: list[str], others: list[str]) -> dict[str, list[float]]:
    """Of tokenizers trained on the same titles: the share of tokens that each has in common with the first, and its
    tokens for each of the other titles, EOS tokens counted.
    """
    trained = [train_tokenizer("unigram", training, VOCABULARY) for _ in range(TIMES)]
    first, *again = ({one.token_bytes(i) for i in range(one.vocab_size)} for one in trained)
    tokens = [sum(len(tokenizer.encode(title)) + 1 for title in others) for tokenizer in trained]
    return {
        "common": [round(len(first & vocabulary) / len(first), 5) for vocabulary in again],
        "tokens": [round(count / len(others), 4) for count in tokens],
    }
