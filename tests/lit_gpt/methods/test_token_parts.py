"""Tokens share the vectors of their parts: which they are, what is learned together, and that nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_gpt
from datamodules.errors import UserError
from datamodules.tokenizers import PATTERNS, BPETokenizer, token_parts
from lit_gpt import LitExtendedGPT, checkpoint, loss
from lit_gpt.config import GPTConfig
from lit_gpt.decode import Sampling, decode
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.extended_gpt import ExtendedEmbedding, ExtendedGPT
from lit_gpt.methods.token_parts import MAX_PARTS, PartsEmbedding
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig, parameter_groups

SHAPE: dict[str, Any] = {"block_size": 16, "vocab_size": 6, "n_layer": 1, "n_head": 2, "n_embd": 16, "tied_head": True}
COMPOSED = {**SHAPE, "token_parts": True, "n_parts": 3}
PARTS = [[1, 3], [2], [1], [], [1, 2], [3]]
BATCH = {"input_ids": torch.randint(6, (3, 16)), "targets": torch.randint(6, (3, 16))}


def composed(**options: Any) -> GPT:
    """A small GPT whose parts are no longer zero."""
    torch.manual_seed(0)
    net = ExtendedGPT(ExtendedGPTConfig(**{**COMPOSED, **options}))
    assert isinstance(net.wte.parts, PartsEmbedding)
    net.wte.parts.assign(PARTS)
    torch.nn.init.normal_(net.wte.parts.shared.weight[1:])
    return net


def test_tokens_share_their_word_their_form_and_their_letters() -> None:
    words = [" the", "The", " THE", "videos", " video", "them", "é", " ", " VIDEOS"]
    tokens = [chr(byte) for byte in range(256)] + [word.encode().decode("latin-1") for word in words]
    found = token_parts(BPETokenizer([*tokens, "\xe2\x80"], PATTERNS["cl100k"], {}))
    *singles, the, The, THE, videos, video, them, e_acute, space, VIDEOS, half = map(set, found)
    assert not half
    assert not singles[0xC3]
    assert the & The & THE  # the word
    assert the & The & THE & them == set()
    assert the & video  # a space before, small letters
    assert len(videos & video) == 1  # the first letters; video is the word of one token
    assert len(them & video) == 0
    assert not e_acute & the
    assert space
    assert len(videos & VIDEOS) == 3  # the word, first and last letters
    assert len(videos) == MAX_PARTS


def test_parts_of_one_token_alone_are_left_out() -> None:
    tokens = [chr(byte) for byte in range(256)] + ["zebra", " cobra"]
    zebra, cobra = token_parts(BPETokenizer(tokens, PATTERNS["cl100k"], {}))[256:]
    forms = token_parts(BPETokenizer(tokens[:257], PATTERNS["cl100k"], {}))[256]
    assert len(zebra) == 2  # small letters without a space, and the last letters
    assert len(forms) == 1
    assert len(cobra) == 1


def test_one_token_learns_what_another_is_taught() -> None:
    embedding = ExtendedEmbedding(ExtendedGPTConfig(**{**COMPOSED, "n_embd": 4}))
    embedding.parts.assign(PARTS)
    before = embedding.rows().detach()
    torch.testing.assert_close(embedding(torch.arange(6)), before)
    embedding(torch.tensor([4])).sum().backward()
    with torch.no_grad():
        for parameter in embedding.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad)
    moved = (before - embedding.rows())[:, 0].round()
    assert moved.tolist() == [1, 1, 1, 0, 3, 0]  # token 4 by itself and its two parts
    assert not embedding.parts.shared.weight[0].any()


def test_a_new_network_starts_as_if_it_had_none() -> None:
    net = ExtendedGPT(ExtendedGPTConfig(**COMPOSED))
    assert isinstance(net.wte.parts, PartsEmbedding)
    net.wte.parts.assign(PARTS)
    assert torch.equal(net.wte.rows(), net.wte.weight)


@pytest.mark.parametrize("options", [{}, {"pad_vocab_to": 8}, {"tied_head": False}])
def test_it_is_the_function_of_the_folded_table(options: dict[str, Any]) -> None:
    net = composed(**options).eval()
    plain = GPT(GPTConfig(**{**SHAPE, **options})).eval()
    plain.load_state_dict({**net.state_dict(), "wte.weight": net.wte.rows()}, strict=False)  # type: ignore[operator]
    torch.testing.assert_close(net(BATCH["input_ids"]), plain(BATCH["input_ids"]), rtol=1e-5, atol=1e-5)
    assert net.num_parameters() == plain.num_parameters() + 4 * 16
    assert net.num_parameters(embeddings=False) == plain.num_parameters(embeddings=False)
    assert [name for name, _ in parameter_groups(net)["embeddings"]] == ["wte.weight", "wte.parts.shared.weight"]
    greedy = {"max_new_tokens": 9, "sampling": Sampling(temperature=0), "generator": torch.Generator()}
    assert list(decode(net, [[1, 2]], **greedy)) == list(decode(plain, [[1, 2]], **greedy))  # type: ignore[arg-type]


@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_the_loss_in_chunks_has_the_gradients_of_the_whole(r_drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(held: int) -> list[torch.Tensor | None]:
        monkeypatch.setattr(loss, "MAX_LOGITS_CPU", held)
        model = LitExtendedGPT(ExtendedGPTConfig(**COMPOSED, dropout=0.1), OptimizerConfig(), r_drop=r_drop)
        model.net = composed(dropout=0.1)
        torch.manual_seed(1)
        model.objective(BATCH)[0].backward()
        return [parameter.grad for parameter in model.net.wte.parameters()]

    for chunked, whole in zip(gradients(60), gradients(10**6), strict=True):
        assert whole is not None
        assert whole.any()
        torch.testing.assert_close(chunked, whole)


def test_a_run_keeps_the_parts_and_generates_without_its_data(fit: Callable[..., Path], text: Path) -> None:
    text.write_text(text.read_text().replace("the", "The", 50))
    flags = ("--model", "LitExtendedGPT", "--model.config.token_parts", "true", "--model.config.tied_head", "true")
    file = fit(*flags) / "checkpoints" / "last.ckpt"
    stored = checkpoint.read(file)
    model = lit_gpt.load(file)
    symbols = [model.tokenizer.decode_bytes([i]).decode() for i in range(model.tokenizer.vocab_size)]
    parts = [{*row.tolist()} - {0} for row in stored["state_dict"]["net.wte.parts.table"]]
    assert stored["lit_gpt"]["config"]["n_parts"] == max(map(max, filter(None, parts)))
    assert len(parts[symbols.index("T")] & parts[symbols.index("t")]) == 1
    assert type(model.net) is GPT
    ids = torch.randint(len(symbols), (2, 9))
    torch.testing.assert_close(model.net(ids), checkpoint.build_network(stored)(ids))
    started = fit(*flags, "--model.init_from", str(file))
    assert checkpoint.read(started / "checkpoints" / "last.ckpt")["state_dict"].keys() == stored["state_dict"].keys()


def test_without_a_tokenizer_there_are_no_parts() -> None:
    model = LitExtendedGPT(ExtendedGPTConfig(**SHAPE, token_parts=True))
    with pytest.raises(UserError, match="token_parts needs the data's tokenizer"):
        model.configure_model()
