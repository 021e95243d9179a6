"""A finished model's loss on another file of titles, which nobody has tuned on, beside that of a character 6-gram.

    python -m benchmarks.headlines.others --checkpoint logs/headlines_cpu/version_0/checkpoints/last.ckpt \\
        --titles titles.txt --others others.txt

A model that was chosen by its validation titles loses more on other titles. So does every model, if the other titles
are harder. How much harder they are is told by the 6-gram, for which nothing was chosen. It is counted from the same
training titles, with Kneser-Ney smoothing. All losses are nats of a title and its EOS token over its characters, an EOS
token as 5. The figures are kept in docs/headlines.json, and `python -m benchmarks.headlines` writes them into the page.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.headlines.page import RESULTS
from benchmarks.headlines.story import EOS_TOKEN, nats_of_rows, nats_of_titles
from benchmarks.reproductions.headlines import split_titles
from benchmarks.reproductions.results import keep
from datamodules.sources import open_source
from datamodules.tokens import TokenArrays
from lit_gpt import load
from lit_gpt.methods.kneser_ney import KneserNey

ORDER = 6


class CharacterNgrams:
    """Kneser-Ney counts of the characters of titles.

    All characters that the counted titles do not have are one token, so what it says of them is a little too good.
    """

    def __init__(self, titles: Sequence[str], order: int = ORDER) -> None:
        """Count the n-grams of ``titles`` for n up to ``order``; none crosses from one title into the next."""
        self.ids = {character: i for i, character in enumerate(sorted(set("".join(titles))))}
        self.unknown, self.eos = len(self.ids), len(self.ids) + 1
        rows = [self._encode(title) for title in titles]
        starts = 1 + np.cumsum([0, *(len(row) - 1 for row in rows[:-1])])
        tokens = np.array([self.eos, *(i for row in rows for i in row[1:])], np.int64)
        self.counts = KneserNey(order, len(self.ids) + 2)
        self.counts.count(TokenArrays(tokens, starts, self.eos))

    def _encode(self, title: str) -> list[int]:
        return [self.eos, *(self.ids.get(character, self.unknown) for character in title), self.eos]

    def nats_of_titles(self, titles: Sequence[str]) -> list[float]:
        """Nats of each title with its EOS token, given the EOS token before it."""
        return nats_of_rows([self._encode(title) for title in titles], self._log_probabilities)

    def _log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        contexts = self.counts.contexts(ids)  # (N, T, order - 1)
        return self.counts(contexts.flatten(0, 1)).log().view(*ids.shape, -1)  # (N, T, V)


def loss(nats: Sequence[float], titles: Sequence[str]) -> dict[str, float]:
    """The challenge's loss of titles, and its standard error over titles."""
    sizes = np.array([len(title) + EOS_TOKEN for title in titles])
    mean = sum(nats) / sizes.sum()
    error = math.sqrt(((np.array(nats) - mean * sizes) ** 2).sum()) / sizes.sum()
    return {"loss": round(float(mean), 5), "error": round(float(error), 5)}


def compared(checkpoint: Path, titles: Path, others: Path) -> dict[str, Any]:
    """Both models' losses on the validation titles, and on those others that are not among ``titles``.

    Raises:
        SystemExit: All of the others are.
    """
    training, validation = split_titles({"source": str(titles), "strip": True})
    other = not_among([*training, *validation], open_source(str(others), documents="line", strip=True).documents())
    if not other:
        raise SystemExit(f"--others {others} has no title that is not among those of {titles}: give another file.")
    model, ngrams = load(checkpoint), CharacterNgrams(training)
    files = {"validation": validation, "others": other}
    return {
        "titles": {name: len(file) for name, file in files.items()},
        "network": {name: loss(nats_of_titles(model, file), file) for name, file in files.items()},
        "ngrams": {name: loss(ngrams.nats_of_titles(file), file) for name, file in files.items()},
    }


def not_among(titles: Sequence[str], others: Iterable[str]) -> list[str]:
    """Those of ``others`` that differ from every title in more than upper case and spaces."""
    known = {_plain(title) for title in titles}
    return [title for title in others if _plain(title) not in known]


def _plain(title: str) -> str:
    return " ".join(title.casefold().split())


def main() -> None:
    """Keep and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the finished run")
    parser.add_argument("--titles", type=Path, required=True, help="the 100,000 titles that the run has read")
    parser.add_argument(
        "--others", type=Path, required=True, help="other titles, one a line; any that are among --titles are left out"
    )
    options = parser.parse_args()
    found = compared(options.checkpoint, options.titles, options.others)
    keep(RESULTS, "others", options.checkpoint.parent.parent.parent.name, found)
    print(found)


if __name__ == "__main__":
    main()
