"""Counts beside a network: Kneser and Ney's probabilities, a training as without them, one checkpoint for both."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import lit_gpt
from datamodules.errors import UserError
from datamodules.tokens import TokenArrays
from lit_gpt import LitExtendedGPT
from lit_gpt.cli.lightning_cli import run
from lit_gpt.commands.export import export
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.kneser_ney import GPTWithCounts, KneserNey
from tests.lit_gpt.methods.test_ensemble import final_loss, whole_and_gone_on
from tests.lit_gpt.test_language_model import SMALL, joined, rows, trainer
from tests.lit_gpt.test_model import small, tokens

Fit = Callable[..., Path]
THREE = ("--model", "LitExtendedGPT", "--model.config.kneser_ney", "3")
V = 12


def documents(count: int = 60) -> list[list[int]]:
    """Ids from 1 on, of which some are frequent; an end mark would be 0."""
    rng = np.random.default_rng(0)
    return [(rng.zipf(1.3, size=rng.integers(1, 9)) % (V - 1) + 1).tolist() for _ in range(count)]


def laid_out(texts: list[list[int]], marks: bool) -> TokenArrays:
    """As in a token store: ``[0 d1 0 d2 0]`` or, without end marks, the bare stream."""
    ids, starts = [0] * marks, [0]
    for text in texts:
        ids += text + [0] * marks
        starts.append(len(ids) - marks)
    return TokenArrays(np.array(ids, dtype=np.uint16), np.array(starts), 0 if marks else None)


def by_definition(texts: list[list[int]], order: int, left_out: range = range(0)) -> Callable[[list[int], int], float]:
    """The probability of a token after others, with sets and sums over all runs that do not end in a range."""
    times: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
    before: list[dict[tuple[int, ...], set[int]]] = [{} for _ in range(order + 1)]
    marked = texts[0][0] == 0
    for text in texts:
        for end in range(int(marked), len(text)):
            for n in range(1, min(order, end + 1) + 1) if end not in left_out else ():
                found = tuple(text[end - n + 1 : end + 1])
                shift_right = text[end - n : end - n + 1] if end >= n else []
                if n == order or not shift_right:
                    times[n][found] += 1
                else:
                    before[n].setdefault(found, set()).update(shift_right)
    for n in range(order):
        times[n].update({found: len(kinds) for found, kinds in before[n].items()})

    def probability(context: list[int], token: int) -> float:
        p = 1 / V
        for n in range(1, min(order, len(context) + 1) + 1):
            seen = tuple(context[len(context) - n + 1 :])
            follow = {found: count for found, count in times[n].items() if found[:-1] == seen}
            if not follow:
                break
            ones, twos = (sum(count == wanted for count in times[n].values()) for wanted in (1, 2))
            discount = (ones + 0.5) / (ones + 2 * twos + 1)
            here = max(follow.get((*seen, token), 0) - discount, 0)
            p = (here + discount * len(follow) * p) / sum(follow.values())
        return p

    return probability


@pytest.mark.parametrize("marks", [True, False], ids=["end marks", "bare"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_are_those_of_the_definition(order: int, marks: bool) -> None:
    texts = documents()
    counts = KneserNey(order, V)
    counts.count(laid_out(texts, marks))
    marked = [[0, *text, 0] for text in texts] if marks else texts
    wanted = by_definition(marked, order)
    for text in [*marked[:8], [0, 3, 3, 3, 7, 1, 9, 9]]:  # the last one's runs are rare or unknown
        found = counts(counts.contexts(torch.tensor([text]))[0])  # (T, V)
        each = [[wanted(text[: i + 1], token) for token in range(V)] for i in range(len(text))]
        torch.testing.assert_close(found, torch.tensor(each), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(len(text)))


def test_what_follows_often_is_likely_and_other_contexts_do_not_matter() -> None:
    counts = KneserNey(3, V)
    counts.count(laid_out([[1, 2, 3]] * 20 + [[4, 2, 5]] * 20, marks=True))

    def after(*context: int) -> Tensor:
        return counts(counts.contexts(torch.tensor([context]))[0])[-1]

    assert after(0, 1, 2)[3] > 0.9
    assert after(0, 4, 2)[5] > 0.9
    assert torch.equal(after(7, 1, 2), after(4, 1, 2))  # further back than the counts go
    assert after(9, 2)[3] > 1.2 * after(9, 9)[3]  # of a pair that the text does not hold the last token counts


def test_the_mix_has_both_shares_and_the_training_text_alone() -> None:
    net, ids = small(kneser_ney=3, kneser_ney_share=0.25).eval(), tokens(2, 20)
    alone = net.gpt(ids).softmax(-1)
    counted = net.counts(net.counts.contexts(ids).flatten(0, 1)).view_as(alone)
    torch.testing.assert_close(net(ids).exp(), 0.75 * alone + 0.25 * counted)
    assert (net(ids).exp() - alone).abs().max() > 0.05


def trained(folder: Path, **options: Any) -> LitExtendedGPT:
    torch.manual_seed(0)
    model = LitExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=20, **options))
    data = [joined(rows(16, 3, 9, 1)), joined(rows(5, 16))]
    model.configure_model()
    if isinstance(model.net, GPTWithCounts):
        model.net.counts.count(laid_out(documents(), marks=True))
    trainer(folder, max_steps=4, gradient_clip_val=0.5).fit(model, DataLoader(data, batch_size=None))
    return model


def test_training_is_the_same_with_counts_and_scores_are_those_of_the_mix(tmp_path: Path) -> None:
    plain, counted = trained(tmp_path), trained(tmp_path, kneser_ney=3)
    for one, other in zip(plain.net.state_dict().values(), counted.net.gpt.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.step_loss, counted.step_loss)
    batch = joined(rows(16, 9))
    logs = counted.net.eval()(batch["input_ids"])
    expected = F.cross_entropy(logs.mT, batch["targets"], reduction="none", ignore_index=-100)
    torch.testing.assert_close(counted.token_scores(batch)[0], expected)
    assert not torch.allclose(counted.token_scores(batch)[0], plain.token_scores(batch)[0])


@pytest.mark.slow
def test_a_run_with_counts_is_kept_goes_on_and_writes(fit: Fit, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*THREE, "--model.optimizer.schedule", "constant", "--model.config.members", "2")
    whole, path, loss = whole_and_gone_on(fit, *flags)
    assert loss < final_loss(fit(*flags[:2], "--model.config.members", "2", *flags[4:6])) - 0.1
    model = lit_gpt.load(whole)
    assert isinstance(model.net, GPTWithCounts)
    assert model.generate("the", seed=1) == model.generate("the", seed=1, cache=False)
    capsys.readouterr()
    other = text.with_name("other.txt")  # the counts are the checkpoint's, whatever text is there now
    other.write_text(text.read_text()[-1200:] * 10, encoding="utf-8")
    for name in (text, other):
        run("validate", ["--ckpt_path", str(whole), "--data.source", str(name), "--data.val_source", str(text)])
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("val "))
    assert first.split("train")[0] == second.split("train")[0]
    with pytest.raises(UserError, match=r"has kneser_ney 3, not kneser_ney 0: set --model\.config\.kneser_ney 3"):
        fit(*flags[:2], *flags[4:], "--trainer.max_steps", "9", "--ckpt_path", path)
    with pytest.raises(UserError, match="a GPTWithCounts has no counterpart at Hugging Face"):
        export(path, "out")


def test_counts_start_beside_the_weights_of_another_run(fit: Fit) -> None:
    path = str(fit() / "checkpoints" / "last.ckpt")
    folder = fit(*THREE, "--model.init_from", path, "--trainer.max_steps", "1", "--model.optimizer.lr", "0.0")
    before, after = (torch.load(p, weights_only=True)["state_dict"] for p in (path, folder / "checkpoints/last.ckpt"))
    assert all(torch.equal(after[name.replace("net.", "net.gpt.", 1)], w) for name, w in before.items())


def test_counts_need_our_data(tmp_path: Path) -> None:
    model = LitExtendedGPT(ExtendedGPTConfig(**SMALL, vocab_size=20, kneser_ney=3))
    with pytest.raises(UserError, match="kneser_ney counts the text of lit-gpt's datamodules only"):
        trainer(tmp_path, max_steps=1).fit(model, DataLoader([joined(rows(16))], batch_size=None))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kneser_ney": 1}, "kneser_ney is 1: give 0 for none"),
        ({"kneser_ney_share": 1.0}, "give a share above 0 and below 1"),
    ],
    ids=str,
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ExtendedGPTConfig(**options)
