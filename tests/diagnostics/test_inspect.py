"""The verb inspect: each token's nats, rank and probability, in the terminal and on a page."""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datamodules.errors import UserError
from datamodules.tokenizers import ByteTokenizer, CharTokenizer
from lit_gpt import LitBigram, LitGPT, load
from lit_gpt import checkpoint as checkpoint_file
from lit_gpt.baselines.bigram import BigramConfig
from lit_gpt.commands import run
from lit_gpt.config import GPTConfig
from lit_gpt.diagnostics.inspect import _page_data
from lit_gpt.diagnostics.scores import likeliest, score_tokens
from lit_gpt.diagnostics.shown import cells
from lit_gpt.generate import TextModel
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.module import LitExtendedGPT
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import Network, with_defaults

Capture = pytest.CaptureFixture[str]
TEXT = "abba cab\nbac a b"


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def direct(model: TextModel, ids: list[int], T: int = 16) -> list[tuple[float, int]]:
    """Nats and rank of each token but the first, each from a forward pass of its own over at most T tokens."""
    result = []
    for place in range(1, len(ids)):
        logits = model.net(torch.tensor([ids[max(place - T, 0) : place]]))[0, -1]
        probabilities = logits.double().exp() / logits.double().exp().sum()
        order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
        result.append((-math.log(float(probabilities[ids[place]])), order.index(ids[place])))
    return result


@dataclass
class OwnConfig:
    """Size of a network that is not lit_gpt's."""

    block_size: int = 16
    vocab_size: int | None = None


class Own(Network):
    """Reads the last token alone."""

    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size or 0, 8)
        self.lm_head = nn.Linear(8, config.vocab_size or 0)

    def hidden(self, input_ids: torch.Tensor, **context: Any) -> torch.Tensor:
        return self.wte(input_ids)

    def head(self, hidden: torch.Tensor, weights: Any = None) -> torch.Tensor:
        weight, bias = weights or self.head_weights()
        return hidden @ weight.T + bias

    def head_weights(self, ids: Any = None) -> list[torch.Tensor]:
        return [self.lm_head.weight, self.lm_head.bias]


class LitOwn(LitLanguageModel):
    """A network of the user's."""

    config_class = OwnConfig

    def __init__(self, config: Any, optimizer: Any = OptimizerConfig()) -> None:  # noqa: B008
        super().__init__(config, optimizer)

    def build_network(self) -> Own:
        return Own(self.config)


LETTERS = CharTokenizer("abc \n")
SIZE = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
MODELS = {
    "gpt": (LitGPT, GPTConfig(**SIZE, vocab_size=5)),
    "bigram": (LitBigram, BigramConfig(block_size=16, vocab_size=5)),
    "bigram of counts": (LitBigram, BigramConfig(block_size=16, vocab_size=5, kind="counts")),
    "extended": (LitExtendedGPT, ExtendedGPTConfig(**SIZE, vocab_size=5, members=2)),
    "own": (LitOwn, OwnConfig(vocab_size=5)),
}


def save(path: Path, module: Any, config: Any, tokenizer: Any) -> Path:
    """A checkpoint of an untrained network with larger random weights."""
    torch.manual_seed(0)
    net = module(config).build_network()
    for parameter in net.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    for buffer in net.buffers():
        if buffer.shape == (5, 5):  # counts
            buffer.copy_(torch.randint(9, (5, 5)))
    data = with_defaults(None)
    data.tokenizer, data.vocab_size = tokenizer, tokenizer.vocab_size
    entry = checkpoint_file.describe(module, asdict(config), data)
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    lightning = {"global_step": 1, "epoch": 0, "pytorch-lightning_version": "2.6.6"}
    torch.save({**lightning, "state_dict": state, checkpoint_file.KEY: entry}, path)
    return path


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_every_kind_of_model_is_scored(kind: str, tmp_path: Path, capsys: Capture) -> None:
    module, config = MODELS[kind]
    path = save(tmp_path / "a.ckpt", module, config, LETTERS)
    own = ["--model", f"{__name__}.LitOwn"] if kind == "own" else []
    arguments = ["--ckpt_path", str(path), "--text", TEXT, "--device", "cpu", *own]
    run("inspect", arguments)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    run("inspect", [*arguments, "--out", str(tmp_path / "p.html")])
    data = data_of(tmp_path / "p.html")
    model = load(path, model=LitOwn if own else None)
    expected = direct(model, LETTERS.encode(TEXT))
    assert data["tokens"][0][1] is None
    assert [token[1] for token in data["tokens"][1:]] == pytest.approx([nats for nats, _ in expected], abs=2e-4)
    assert [token[2] for token in data["tokens"][1:]] == [rank for _, rank in expected]
    rows = [line.split() for line in out.splitlines()[2:]]
    (row,) = [row for row in rows if row[:2] == ["1", "'b'"]]
    nats, rank = expected[0]
    assert row[2:5] == [f"{nats:.3f}", f"{math.exp(-nats):.4f}", str(rank)]


def small(tokenizer: Any, block_size: int = 64) -> TextModel:
    torch.manual_seed(0)
    config = GPTConfig(block_size=block_size, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16)
    net = GPT(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return TextModel(net, tokenizer)


@torch.no_grad()
def test_a_long_text_has_half_a_context_before_each_token() -> None:
    model = small(CharTokenizer("abcd"), block_size=8)
    ids = torch.randint(4, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    scored = score_tokens(model, ids)
    assert [token.id for token in scored] == ids
    assert not scored[0].likeliest
    # The first window reads tokens 0 to 7. Each later one ends 4 tokens further and scores its last 4 targets.
    for place, token in enumerate(scored[1:], 1):
        end = 8 if place <= 8 else min(8 + 4 * math.ceil((place - 8) / 4), 29)
        logits = model.net(torch.tensor([ids[max(end - 8, 0) : place]]))[0, -1]
        assert token.nats == pytest.approx(-float(logits.log_softmax(-1)[ids[place]]), abs=1e-5)


@torch.no_grad()
def test_the_first_token_follows_the_eos_token() -> None:
    model = small(CharTokenizer("abcd", eos=True))
    (first, *_) = score_tokens(model, [2, 1])
    logits = model.net(torch.tensor([[model.tokenizer.eos_id]]))[0, -1]
    assert first.nats == pytest.approx(-float(logits.log_softmax(-1)[2]), abs=1e-5)


def test_equal_logits_are_in_the_order_of_their_ids_as_in_a_rank() -> None:
    logits = torch.zeros(2, 30)
    logits[1, 20:] = 1.0
    flat, raised = likeliest(logits)
    assert [i for i, _ in flat] == list(range(10))
    assert [i for i, _ in raised] == list(range(20, 30))
    assert flat[0][1] == pytest.approx(1 / 30)
    assert sum(p for _, p in raised) == pytest.approx(10 * math.e / (10 * math.e + 20))


ODD = (
    "e\u0301 \U0001f469\u200d\U0001f680 \U0001f1e9\U0001f1ea \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 "
    "\u202eabc\x1b[31m\t\n<b>"
)


def test_parts_of_a_character_are_one_cell() -> None:
    pieces = [bytes([byte]) for byte in ODD.encode()]
    found = cells(pieces)
    assert [place for _, places in found for place in places] == list(range(len(pieces)))
    shown = [text for text, _ in found]
    assert shown[:5] == ["e\u0301", " ", "\U0001f469\u200d\U0001f680", " ", "\U0001f1e9\U0001f1ea"]
    assert "\u05e9" in shown
    assert "\u0645" in shown
    assert "\\u202e" in shown  # it would turn the rest of the page around
    assert "\\x1b" in shown
    assert "\u23ce\n" in shown


def test_a_cell_is_what_a_reader_takes_for_one_character() -> None:
    hangul, hindi, cut = "\u1112\u1161\u11ab", "\u0928\u093f", "\u00e9".encode()[:1]
    found = cells([b"", *(c.encode() for c in hangul + hindi), cut, b"a", cut])
    assert found == [("", [0]), (hangul, [1, 2, 3]), (hindi, [4, 5]), ("\ufffd", [6]), ("a", [7]), ("\ufffd", [8])]


def test_odd_text_is_escaped_on_the_page_and_in_the_terminal() -> None:
    model = small(ByteTokenizer(), block_size=256)
    tokens = score_tokens(model, model.tokenizer.encode(ODD))
    data = _page_data(model, tokens, "x.ckpt")
    assert len(data["tokens"]) == len(ODD.encode())
    assert data["names"][str(0xF0)] == "\\xf0"
    json.dumps(data, allow_nan=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of a model of bytes and of one of letters."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder / "bytes.ckpt", LitGPT, GPTConfig(**{**SIZE, "block_size": 128}, vocab_size=256), ByteTokenizer())
    save(folder / "letters.ckpt", *MODELS["gpt"], LETTERS)
    return folder


def test_the_page_holds_text_that_cannot_leave_its_place(checkpoint: Path, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    out = tmp_path / "p.html"
    run("inspect", ["--ckpt_path", str(checkpoint / "bytes.ckpt"), "--text", ODD + evil, "--out", str(out)])
    assert evil not in out.read_text(encoding="utf-8")
    assert "".join(text for text, _ in data_of(out)["cells"]).endswith(evil)


def test_at_shows_the_likeliest_and_the_true_token(checkpoint: Path, capsys: Capture) -> None:
    path = checkpoint / "bytes.ckpt"
    run("inspect", ["--ckpt_path", str(path), "--text", "ab\U0001f642", "--at", "3", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    probabilities = load(path).net(torch.tensor([[0x61, 0x62, 0xF0]]))[0, -1].softmax(-1)
    rows = [line.split() for line in lines[3:]]
    assert len(rows) in (10, 11)
    assert [float(row[2]) for row in rows[:10]] == pytest.approx(probabilities.topk(10).values.tolist(), abs=1e-3)
    (true,) = [row for row in rows if row[-1] == "text"]
    assert true[1] == "'\\x9f'"
    assert int(true[0]) == int((probabilities > probabilities[0x9F]).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "abz"], "'z' .U\\+007A., as in 'abz', is not among the 5 of this vocabulary"),
        (["--text", "a"], "the text is one token, which has nothing before it"),
        ([], "give --text TEXT or --file PATH"),
        (["--text", "a", "--file", "b"], "give --text TEXT or --file PATH"),
        (["--file", "nowhere.txt"], "there is no file, folder or source 'nowhere.txt'"),
        (["--file", "latin.txt"], "latin.txt is not UTF-8"),
        (["--file", "empty.txt"], "empty.txt is empty"),
        (["--text", "abc", "--at", "0"], "--at 0 is no scored token of this text: give 1 to 2"),
        (["--text", "abc", "--at", "3"], "--at 3 is no scored token of this text: give 1 to 2"),
        (["--text", "abc", "--at", "-1"], "--at -1 is no scored token of this text: give 1 to 2"),
        (["--text", "abc", "--at", "1", "--out", "p.html"], "leave it out, because the page shows every place"),
        (["--text", "abc", "--out", "latin.txt"], "latin.txt is there already and is no page"),
        (["--text", "abc", "--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["--txt", "abc"], "--txt is unknown: did you mean --text"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes(b"a\xe9")
    Path("empty.txt").touch()
    with pytest.raises(UserError, match=message):
        run("inspect", ["--ckpt_path", str(checkpoint / "letters.ckpt"), *arguments])
    assert not capsys.readouterr().out
