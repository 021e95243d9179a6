"""Generation: the cache changes nothing but the time, sampling obeys its limits, text ends where it should."""

import io
import math
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.errors import UserError
from datamodules.tokenizers import CharTokenizer
from lit_gpt.baselines.bigram import BigramConfig, NeuralBigram
from lit_gpt.commands import generate as verb
from lit_gpt.decode import Sampling, decode
from lit_gpt.generate import TextModel
from lit_gpt.protocols import Network
from tests.lit_gpt.test_model import EVERY_ARCHITECTURE, small, tokens

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


class Script(Network):
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

    def head(self, hidden: torch.Tensor, weights: list[torch.Tensor] | None = None) -> torch.Tensor:
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


UNEQUAL = [[1, 2, 3], list(range(1, 18)), [5] * 30 + [6, 7], [4, 9] * 25]  # 3, 17, 32 and 50 tokens; the block has 32


class Dice(Sampling):
    """Every row draws with the same number, which depends on the step alone."""

    def pick(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        number = torch.rand((), generator=generator)
        return (logits.softmax(-1).cumsum(-1) < number).sum(-1).clamp(max=logits.size(-1) - 1)


def reread(net: Any, prompt: list[int], n: int, sampling: Sampling) -> list[int]:
    """What `decode` should write: every token from a whole forward pass over the row's own window."""
    generator, window = torch.Generator().manual_seed(3), prompt[-net.config.block_size :]
    for _ in range(n):
        with torch.no_grad():
            token = int(sampling.pick(net(torch.tensor([window]))[:, -1], generator))
        window = [*(window if len(window) < net.config.block_size else window[1 - net.config.block_size // 2 :]), token]
        prompt = [*prompt, token]
    return prompt[-n:]


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("sampling", [Sampling(0), Dice()])
def test_rows_of_unequal_length_outgrow_the_block_each_as_if_alone(
    architecture: dict[str, Any], cache: bool, sampling: Sampling
) -> None:
    net, generator = small(**architecture).eval(), torch.Generator().manual_seed(3)
    steps = decode(net, UNEQUAL, max_new_tokens=50, sampling=sampling, generator=generator, cache=cache)
    rows = [list(row) for row in zip(*steps, strict=True)]
    assert rows == [reread(net, prompt, 50, sampling) for prompt in UNEQUAL]


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("cache", [True, False])
def test_the_smallest_blocks_outgrow_themselves_too(block_size: int, cache: bool) -> None:
    net = small(block_size=block_size).eval()
    rows = greedy(net, UNEQUAL[:2], 9, cache)
    assert rows == [greedy(net, [prompt], 9)[0] for prompt in UNEQUAL[:2]]


@pytest.mark.parametrize("size", [31, 32, 33, 50])
def test_the_first_token_after_a_long_prompt_sees_a_whole_block(size: int) -> None:
    net, prompt = small().eval(), tokens(1, size)
    first = int(net(prompt[:, -32:])[0, -1].argmax())
    assert greedy(net, prompt.tolist(), 1) == [[first]]


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
    assert net.training
    assert all("forward" not in vars(m) for m in net.modules())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    net(torch.tensor([[1, 2]])).sum().backward()


def test_every_part_of_the_network_keeps_its_own_mode_and_forward() -> None:
    net = small(dropout=0.5).train()
    net.blocks[0].eval()  # frozen, inside a network that trains
    own = net.blocks[1].mlp.fc
    own.forward = forward = partial(nn.Linear.forward, own)
    modes = [m.training for m in net.modules()]
    greedy(net, [[1, 2]], 3)
    assert [m.training for m in net.modules()] == modes
    assert own.forward is forward
    net.eval().blocks[0].train()
    greedy(net, [[1, 2]], 3)
    assert net.blocks[0].mlp.training
    assert not net.training


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
    with pytest.raises(UserError, match="new_document needs an EOS token"):
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
    for (top_k, top_p, min_p), ids in kept.items():
        drawn = Sampling(1.0, top_k, top_p, min_p).pick(logits.expand(2000, -1), generator)
        assert drawn.unique().tolist() == ids, (top_k, top_p, min_p)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_keeps_exactly_k_of_equal_tokens_and_all_that_are_likelier(k: int) -> None:
    rows = torch.tensor([[0.0, 1.0, 1.0, 1.0, -1.0], [2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0], [1.0] * 5])
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        kept = Sampling(1.0, top_k=k).pick(row.expand(1000, -1), generator).unique()
        assert row[kept].sort().values.tolist() == row.sort().values[-k:].tolist()


@pytest.mark.parametrize("limit", [{"top_p": 0.7}, {"min_p": 0.4}])
def test_limits_look_at_what_the_temperature_made(limit: dict[str, float]) -> None:
    logits, generator = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log().expand(2000, -1), torch.Generator().manual_seed(0)
    for temperature, ids in ((0.5, [0]), (1.0, [0, 1])):  # 0.72 0.18 0.07 0.03, and as they are
        assert Sampling(temperature, **limit).pick(logits, generator).unique().tolist() == ids


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
        ({"temperature": math.nan}, "temperature is nan: give 0"),
        ({"temperature": math.inf}, "temperature is inf: give 0"),
        ({"top_k": math.nan}, "top_k is nan: give an integer"),
        ({"top_p": math.nan}, "top_p is nan: give a probability"),
        ({"min_p": math.nan}, "min_p is nan: give a probability"),
        ({"max_new_tokens": math.nan}, "max_new_tokens is nan: give an integer"),
        ({"num_samples": 10**9}, "num_samples is 1000000000, in all 1000000000 texts: ask for at most 65536"),
        ({"num_samples": 40_000, "prompt": ["a", "b"]}, "num_samples is 40000, in all 80000 texts"),
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


def test_a_cache_that_memory_cannot_hold_is_one_sentence() -> None:
    net = small(n_layer=1)
    net.new_cache = lambda rows: torch.empty(2**57)  # no machine has that much, and the allocator says so
    with pytest.raises(UserError, match="3 texts at once need more memory than the cpu has: lower num_samples"):
        TextModel(net, Letters()).generate("a", num_samples=3)


def test_the_number_of_new_tokens_takes_no_memory() -> None:
    text = TextModel(small().eval(), Letters(eos_id=None))
    few = "".join(text.stream("a", max_new_tokens=40, temperature=0))
    pieces = text.stream("a", max_new_tokens=10**12, temperature=0)
    assert "".join(next(pieces) for _ in range(40)) == few


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
    monkeypatch.setattr(verb, "load", lambda path, device, model: text)

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


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99", "hpu", "cpu:x", ""])
def test_an_unusable_device_is_one_sentence(say: Any, device: str) -> None:
    with pytest.raises(UserError, match=f"device '{device}' cannot be used here: try --device cpu"):
        verb.generate("some.ckpt", prompt="a", device=device)


def test_a_character_that_the_model_does_not_know_gets_advice_that_generate_can_take() -> None:
    text = TextModel(small(vocab_size=3), CharTokenizer("abc"))
    with pytest.raises(UserError, match=r"'#' \(U\+0023\), as in 'a#c', .* leave it out of the text, or use a model"):
        text.generate("a#c")


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("top_k", 1.5, "an integer"),
        ("top_k", "3", "an integer"),
        ("temperature", None, "a number"),
        ("temperature", "hot", "a number"),
        ("temperature", True, "a number"),
        ("top_p", [0.5], "a number"),
        ("min_p", torch.ones(2), "a number"),
        ("max_new_tokens", 2.5, "an integer"),
        ("num_samples", "2", "an integer"),
        ("seed", 1.0, "an integer"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(option: str, value: object, wanted: str) -> None:
    with pytest.raises(UserError, match=f"^{option} is .*: give {wanted}\\.$"):
        model().generate("a", **{option: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    assert Sampling(np.float32(0.5), np.int64(3), np.float64(0.9)).top_k == 3
