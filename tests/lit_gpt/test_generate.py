"""Generation: the cache changes nothing but the time, sampling obeys its limits, text ends where it should."""

import io
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datamodules.errors import UserError
from lit_gpt.bigram import BigramConfig, NeuralBigram
from lit_gpt.commands import generate as verb
from lit_gpt.decode import Sampling, decode
from lit_gpt.generate import TextModel
from tests.lit_gpt.test_model import EVERY_ARCHITECTURE, small

LETTERS = "\nabcdefghijklmnopqrstuvwxyz .,é€"


class Letters:
    """One id for each letter and one for the end mark; the last two ids are the bytes of half a character each."""

    prefix_space = False

    def __init__(self, eos_id: int | None = len(LETTERS)) -> None:
        self.eos_id = eos_id
        self.table = [*(c.encode() for c in LETTERS), b"<end>", *("ß".encode()[i : i + 1] for i in range(2))]
        self.vocab_size = len(self.table)

    def encode(self, text: str) -> list[int]:
        for character in text:
            if character not in LETTERS:
                raise UserError(f"character {character!r} is not in the vocabulary: leave it out.")
        return [LETTERS.index(c) for c in text]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.table[i] for i in ids)


class Script(nn.Module):
    """A network that writes a given list of tokens, whatever it reads."""

    def __init__(self, script: list[int], V: int, block_size: int = 1000) -> None:
        super().__init__()
        self.script, self.V, self.calls = script, V, 0
        self.config = BigramConfig(vocab_size=V, block_size=block_size)
        self.weight = nn.Parameter(torch.zeros(1))

    def hidden(self, input_ids: torch.Tensor, **context: Any) -> torch.Tensor:
        self.calls += 1
        token = torch.tensor(self.script[self.calls - 1])
        return nn.functional.one_hot(token, self.V).float().expand(*input_ids.shape, -1) * 50

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def model(**options: Any) -> TextModel:
    return TextModel(small(**options).eval(), Letters())


def written(script: str, **options: Any) -> tuple[str, list[str]]:
    """What `generate` returns and `stream` yields for a network that wants to write `script`."""
    tokenizer = Letters()
    ids = [*tokenizer.encode(script), tokenizer.eos_id or 0]
    models = [TextModel(Script(ids, tokenizer.vocab_size), tokenizer) for _ in range(2)]
    return models[0].generate("a", **options)[0], list(models[1].stream("a", **options))


def greedy(net: nn.Module, prompts: list[list[int]], n: int, cache: bool = True) -> list[list[int]]:
    steps = decode(
        net, prompts, max_new_tokens=n, sampling=Sampling(0), generator=torch.Generator(), cache=cache
    )  # fmt: skip
    return [list(row) for row in zip(*steps, strict=True)]


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3]] * 4, [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8]], [[4] * 50]])
def test_cached_equals_uncached_across_the_end_of_the_block(architecture: dict[str, Any], prompts: list) -> None:
    net = small(**architecture).eval()
    assert greedy(net, prompts, 80) == greedy(net, prompts, 80, cache=False)


@EVERY_ARCHITECTURE
def test_prompts_of_different_length_continue_as_if_alone(architecture: dict[str, Any]) -> None:
    net, prompts = small(**architecture).eval(), [[1, 2, 3], [4] * 9, [5, 6], [7]]
    assert greedy(net, prompts, 20) == [greedy(net, [prompt], 20)[0] for prompt in prompts]


def test_at_the_end_of_the_block_its_last_half_is_read_again() -> None:
    net = small().eval()  # block_size 32
    first = greedy(net, [[1, 2]], 31)[0]  # 33 tokens: the last one was drawn from a full block
    assert greedy(net, [[1, 2]], 40)[0] == [*first, *greedy(net, [first[-16:]], 9)[0]]


def test_a_wider_batch_uses_the_same_numbers_as_a_single_row() -> None:
    net = small(n_embd=64, mlp_width=250, bias=True, bias_qkv=True).eval()
    assert greedy(net, [[1, 2, 3]] * 5, 29) == [greedy(net, [[1, 2, 3]], 29, cache=False)[0]] * 5


def test_the_network_is_left_as_it_was() -> None:
    net = small(dropout=0.5).train()
    state, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    text = TextModel(net, Letters())
    assert text.generate("ab", seed=1, num_samples=4) == text.generate("ab", seed=1, num_samples=4)
    stream = text.stream("ab")
    next(stream)
    assert not net.training
    stream.close()
    assert net.training
    assert all("forward" not in vars(m) for m in net.modules())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    net(torch.tensor([[1, 2]])).sum().backward()


def test_a_seed_repeats_a_text_and_samples_differ() -> None:
    text = model()
    first, again, other = (text.generate("the ", seed=seed, temperature=2.0) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(text.generate("the ", num_samples=4, temperature=2.0, seed=0))) == 4
    assert text.generate("the ", temperature=2.0) != text.generate("the ", temperature=2.0)


def test_samples_come_in_the_order_of_the_prompts() -> None:
    text = model()
    a, b = text.generate("a", temperature=0)[0], text.generate("bc", temperature=0)[0]
    assert text.generate(["a", "bc"], temperature=0, num_samples=2, max_new_tokens=20) == [
        *[text.generate("a", temperature=0, max_new_tokens=20)[0]] * 2,
        *[text.generate("bc", temperature=0, max_new_tokens=20)[0]] * 2,
    ]
    assert a != b


def test_streaming_gives_what_generate_gives() -> None:
    text = model()
    for options in ({}, {"stop": ["e", "th"]}, {"top_k": 3}, {"temperature": 0}):
        assert "".join(text.stream("the", seed=3, **options)) == text.generate("the", seed=3, **options)[0]


def test_the_end_mark_ends_the_text_and_is_not_part_of_it() -> None:
    assert written("some text") == ("some text", [*"some text", ""])


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("end", "it may en. then "),
        (["end"], "it may en. then "),
        (["nd", "end"], "it may en. then "),
        (["€"], "it may en. then end"),
    ],
)
def test_stop_strings_end_the_text_and_never_show(stop: str | list[str], left: str) -> None:
    whole, pieces = written("it may en. then end€ more", stop=stop)
    assert whole == left
    assert "".join(pieces) == left


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_sure() -> None:
    _, pieces = written("a.b..c", stop=["..."])
    assert pieces == ["a", "", ".b", "", "", "..c", ""]


def test_a_character_of_two_tokens_is_written_once_whole() -> None:
    tokenizer = Letters()
    half = tokenizer.vocab_size - 2
    script = TextModel(Script([half, half + 1, half, 1, half], tokenizer.vocab_size), tokenizer)
    assert list(script.stream("a", max_new_tokens=5)) == ["", "ß", "", "\ufffda", "", "\ufffd"]


@pytest.mark.parametrize(("prompt", "expected"), [("", "ab"), ("a", " ab")])
def test_the_space_of_the_tokenizer_before_a_text_is_not_written(prompt: str, expected: str) -> None:
    tokenizer = Letters()
    tokenizer.prefix_space = True
    ids = [*tokenizer.encode(" ab"), tokenizer.eos_id or 0]
    models = [TextModel(Script(ids, tokenizer.vocab_size), tokenizer) for _ in range(2)]
    assert models[0].generate(prompt) == [expected]
    assert "".join(models[1].stream(prompt)) == expected


def test_an_empty_prompt_starts_at_the_end_mark_or_after_a_newline() -> None:
    net = small().eval()
    marked, unmarked = TextModel(net, Letters()), TextModel(net, Letters(eos_id=None))
    assert unmarked.generate("", temperature=0) == unmarked.generate("\n", temperature=0)
    ids = greedy(net, [[len(LETTERS)]], 5)[0]
    assert marked.generate(temperature=0, max_new_tokens=5)[0] == marked.tokenizer.decode_bytes(ids).decode()


def test_a_new_document_starts_at_the_end_mark() -> None:
    marked = TextModel(small().eval(), Letters())
    ids = greedy(marked.net, [[len(LETTERS), *marked.tokenizer.encode("ab")]], 5)[0]
    text = marked.tokenizer.decode_bytes(ids).decode(errors="replace")
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 5, "new_document": True}
    assert marked.generate("ab", **options)[0] == text != marked.generate("ab", **options | {"new_document": False})[0]
    assert "".join(marked.stream("ab", **options)) == text
    assert marked.generate("", **options) == marked.generate("", **options | {"new_document": False})
    with pytest.raises(UserError, match="new_document needs an end mark"):
        TextModel(marked.net, Letters(eos_id=None)).generate("ab", new_document=True)


def test_limits_keep_what_they_should() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    kept = {
        (2, None, None): [0, 1],
        (None, 0.5, None): [0],
        (None, 0.7, None): [0, 1],
        (None, 1.0, None): [0, 1, 2, 3],
        (None, None, 0.3): [0, 1, 2],
        (3, 0.8, None): [0, 1],
    }
    generator = torch.Generator().manual_seed(0)
    for (top_k, top_p, min_p), tokens in kept.items():
        drawn = Sampling(1.0, top_k, top_p, min_p).pick(logits.expand(2000, -1), generator)
        assert drawn.unique().tolist() == tokens, (top_k, top_p, min_p)


@pytest.mark.parametrize("limit", [{"top_p": 0.7}, {"min_p": 0.4}])
def test_limits_look_at_what_the_temperature_made(limit: dict[str, float]) -> None:
    logits, generator = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log().expand(2000, -1), torch.Generator().manual_seed(0)
    for temperature, tokens in ((0.5, [0]), (1.0, [0, 1])):  # 0.72 0.18 0.07 0.03, and as they are
        assert Sampling(temperature, **limit).pick(logits, generator).unique().tolist() == tokens


def test_temperature_sharpens_and_flattens() -> None:
    logits, generator = torch.tensor([[2.0, 1.0]]).expand(20000, -1), torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 3.0):
        share = Sampling(temperature).pick(logits, generator).eq(0).float().mean().item()
        assert share == pytest.approx(1 / (1 + math.exp(-1 / temperature)), abs=0.015)
    for cold in (0, 1e-40):
        assert Sampling(cold).pick(logits[:3], generator).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1: give 0"),
        ({"top_k": 0}, "top_k is 0: give at least 1"),
        ({"top_p": 0}, "top_p is 0: give a probability"),
        ({"min_p": 1.5}, "min_p is 1.5: give a probability"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give at least 1"),
        ({"num_samples": 0}, "num_samples is 0: give at least 1"),
        ({"seed": 2**64}, "seed is 18446744073709551616: give 0 to"),
        ({"stop": [""]}, "a stop text is empty"),
        ({"prompt": "a#"}, "character '#' is not in the vocabulary"),
    ],
)
def test_a_wrong_request_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model().generate(**options)


def test_no_prompts_give_no_texts() -> None:
    assert model().generate([]) == []


def test_ids_that_the_tokenizer_lacks_are_never_drawn() -> None:
    tokenizer = Letters()
    text = TextModel(small(vocab_size=64), tokenizer)
    assert text.generate("a", temperature=50.0, num_samples=8, seed=0)


def test_a_bigram_writes_too() -> None:
    text = TextModel(NeuralBigram(BigramConfig(vocab_size=35)), Letters())
    whole = text.generate("a", temperature=0, max_new_tokens=30)[0]
    assert text.generate("a", temperature=0, max_new_tokens=30, cache=False)[0] == whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_generates_without_compiling_for_each_length() -> None:
    plain, compiled = small().eval(), small().eval()
    for block in compiled.blocks:
        block.compile()
    torch._dynamo.utils.counters.clear()
    assert greedy(compiled, [[1, 2, 3]], 40) == greedy(plain, [[1, 2, 3]], 40)
    assert not torch._dynamo.utils.counters["frames"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs the verb on a small network with `stdin` typed; returns what it printed."""
    text = model()
    monkeypatch.setattr(verb, "load", lambda path, device: text)

    def run(stdin: io.StringIO, **options: Any) -> str:
        monkeypatch.setattr(sys, "stdin", stdin)
        verb.generate("some.ckpt", seed=1, max_new_tokens=12, device="cpu", **options)
        return capsys.readouterr().out

    run.expected = lambda prompt: prompt + text.generate(prompt, seed=1, max_new_tokens=12)[0] + "\n"  # type: ignore[attr-defined]
    return run


def test_the_verb_prints_prompt_and_text(say: Any) -> None:
    assert say(io.StringIO(), prompt="the ") == say.expected("the ")
    assert say(io.StringIO("from a file\n"), prompt="-") == say.expected("from a file")
    assert say(io.StringIO()) == say.expected("")


def test_the_verb_prints_several_samples_with_a_rule_between(say: Any) -> None:
    samples = say(io.StringIO(), prompt="the ", num_samples=3, temperature=2.0).rstrip("\n").split("\n-----\n")
    assert len(samples) == 3
    assert all(s.startswith("the ") for s in samples)


def test_the_prompt_loop_survives_a_wrong_character(say: Any) -> None:
    out = say(Terminal("a#\nthe \n"))
    assert "character '#' is not in the vocabulary: leave it out.\n" in out
    assert say.expected("the ") in out


def test_an_unusable_device_is_one_sentence(say: Any) -> None:
    with pytest.raises(UserError, match="device 'abacus' cannot be used here: try --device cpu"):
        verb.generate("some.ckpt", prompt="a", device="abacus")
