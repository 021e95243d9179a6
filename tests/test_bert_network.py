"""The encoder in plain torch: sizes, what each token sees, and equality with Hugging Face's BERT."""

from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from lit_gpt.bert.config import PRESETS, BertConfig
from lit_gpt.bert.metrics import pair_cross_entropy
from lit_gpt.bert.model import Bert
from lit_gpt.config import GPTConfig
from lit_gpt.integrity import WithoutInitialisation
from lit_gpt.interop import bert as interop
from lit_gpt.model import GPT
from lit_gpt.optim import OptimizerConfig, build_optimizer

#: Of bert-base-uncased and bert-large-uncased.
VOCABULARY = 30_522
SMALL = {"block_size": 16, "vocab_size": 60, "n_layer": 2, "n_head": 2, "n_embd": 32}


def small(seed: int = 0, **options: Any) -> Bert:
    """A network whose weights are large enough that every part matters."""
    torch.manual_seed(seed)
    net = Bert(BertConfig(**{**SMALL, **options})).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def on_meta(**options: Any) -> Bert:
    with torch.device("meta"), WithoutInitialisation():
        return Bert(BertConfig(vocab_size=VOCABULARY, **options))


def test_the_parameters_of_the_published_sizes() -> None:
    base, large = (on_meta(**PRESETS[f"bert-{size}"]) for size in ("base", "large"))
    assert base.num_parameters() == 110_106_428
    assert large.num_parameters() == 336_226_108
    assert on_meta(**PRESETS["bert-base"], next_sentence=False).num_parameters() == 109_514_298
    encoder = [p for name, p in base.named_parameters() if not name.startswith(("mlm_", "pair_head"))]
    assert sum(p.numel() for p in encoder) == 109_482_240
    decayed, plain = [], []
    for group in build_optimizer(base, OptimizerConfig(weight_decay=0.01)).param_groups:
        (decayed if group["weight_decay"] else plain).extend(group["params"])
    assert (len(decayed), sum(p.numel() for p in decayed)) == (78, 109_951_488)
    assert (len(plain), sum(p.numel() for p in plain)) == (128, 154_940)


def test_an_encoder_of_gpt_blocks_has_the_gpts_tensors() -> None:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 60}
    encoder = Bert(BertConfig(**shape, blocks="gpt", activation="relu2")).state_dict()
    decoder = GPT(GPTConfig(**shape)).state_dict()
    blocks = [{n: t.shape for n, t in s.items() if n.startswith("blocks.")} for s in (encoder, decoder)]
    assert blocks[0] == blocks[1]


def theirs(shape: dict[str, int], **options: Any) -> Any:
    """A random BertForPreTraining whose biases and norms are not at their neutral values."""
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    torch.manual_seed(0)
    names = {ours: hf for hf, ours in interop.OPTIONS.items()}
    scale = 0.2 if shape["n_embd"] < 100 else 0.02  # of a small one larger, so that every part matters
    sizes = {names[name]: value for name, value in shape.items()}
    config = transformers.BertConfig(**sizes, initializer_range=scale, **options)
    net = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def ours_of(net: Any) -> Bert:
    config, state, notes = interop.from_huggingface(net.config.to_dict(), dict(net.state_dict()))
    assert not notes
    ours = Bert(config)
    ours.load_state_dict(state)
    return ours.eval()


def two_segments(rows: int, T: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """Rows of several lengths, with two segments and pads on the right."""
    torch.manual_seed(1)
    place, lengths = torch.arange(T), T - (T // 4) * torch.arange(rows)[:, None]  # (T,), (rows, 1)
    segments = ((place >= lengths // 2) & (place < lengths)).long()
    ids = torch.randint(1, vocab_size, (rows, T))  # their padding token, 0, has no gradient as an input
    return {"input_ids": ids, "attention_mask": place < lengths, "token_type_ids": segments}


@torch.no_grad()
def difference(net: Any, ours: Bert, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest differences of hidden states, MLM logits and NSP logits, of real tokens."""
    real = batch["attention_mask"]
    found = net(**{**batch, "attention_mask": real.long()}, output_hidden_states=True)
    hidden = ours.hidden(batch["input_ids"], attention_mask=real, token_type_ids=batch["token_type_ids"])
    pairs = {
        "hidden": (found.hidden_states[-1][real], hidden[real]),
        "mlm": (found.prediction_logits[real], ours.head(hidden[real])),
        "nsp": (found.seq_relationship_logits, ours.pair_logits(hidden)),
    }
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


SHAPES = {
    "small": {"n_layer": 2, "n_head": 2, "n_embd": 32, "mlp_width": 64, "block_size": 16, "vocab_size": 60},
    "base": {**PRESETS["bert-base"], "mlp_width": 3072, "vocab_size": VOCABULARY},
    "large": {**PRESETS["bert-large"], "mlp_width": 4096, "vocab_size": VOCABULARY},
}


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_every_output_is_that_of_hugging_face(act: str) -> None:
    net = theirs(SHAPES["small"], hidden_act=act)
    worst = difference(net, ours_of(net), two_segments(4, 16, 60))
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])  # 0.4 and 1.3 GB of weights, each twice
def test_every_output_is_that_of_hugging_face_at_the_published_sizes(size: str) -> None:
    net = theirs(SHAPES[size])
    worst = difference(net, ours_of(net), two_segments(2, 64, VOCABULARY))
    print(size, worst)
    assert max(worst.values()) < 1e-4, worst
    assert size == "large" or max(worst.values()) < 1e-5, worst


@torch.no_grad()
def test_float64_is_rounded_nowhere() -> None:
    net, labels = small().double(), torch.tensor([1, 0, 0])
    hidden = net.hidden_of_batch(two_segments(3, 16, 60))
    x = torch.nn.functional.gelu(hidden @ net.mlm_dense.weight.T + net.mlm_dense.bias)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + net.config.norm_eps).sqrt()
    x = x * net.mlm_norm.weight + net.mlm_norm.bias
    torch.testing.assert_close(net.head(hidden), x @ net.wte.weight.T + net.mlm_bias, rtol=1e-12, atol=1e-12)
    pairs = net.pair_logits(hidden)
    by_hand = -pairs.log_softmax(-1)[torch.arange(3), labels].sum()
    torch.testing.assert_close(pair_cross_entropy(pairs, labels), by_hand, rtol=1e-12, atol=1e-12)


# What each token sees


@pytest.mark.parametrize("blocks", ["bert", "gpt"])
@torch.no_grad()
def test_padded_rows_equal_rows_alone(blocks: str) -> None:
    net, batch = small(blocks=blocks), two_segments(3, 16, 60)
    hidden = net.hidden_of_batch(batch)
    for row, real in enumerate(batch["attention_mask"]):
        ids, types = (batch[name][row : row + 1, real] for name in ("input_ids", "token_type_ids"))
        alone = net.hidden(ids, token_type_ids=types)
        torch.testing.assert_close(hidden[row : row + 1, real], alone, atol=1e-5, rtol=1e-5)
        left = {"input_ids": ids, "attention_mask": real[real][None], "token_type_ids": types}
        left = {name: torch.nn.functional.pad(value, (16 - ids.size(1), 0)) for name, value in left.items()}
        moved = net.hidden_of_batch(left)[:, -ids.size(1) :]
        torch.testing.assert_close(moved, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", ["bert", "gpt"])
@torch.no_grad()
def test_packed_rows_equal_rows_alone(blocks: str) -> None:
    net, ids = small(blocks=blocks), torch.randint(60, (2, 16))
    documents = torch.tensor([[0] * 5 + [1] * 11, [2] * 9 + [3] * 4 + [-1] * 3], dtype=torch.int32)
    mask = documents >= 0
    packed = net.hidden(ids, document_ids=documents, attention_mask=mask)
    for row, low, high in ((0, 0, 5), (0, 5, 16), (1, 0, 9), (1, 9, 13)):
        alone = net.hidden(ids[row : row + 1, low:high])
        torch.testing.assert_close(packed[row : row + 1, low:high], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", ["bert", "gpt"])
@torch.no_grad()
def test_tokens_see_both_sides_and_no_other_row(blocks: str) -> None:
    net, ids = small(blocks=blocks), torch.randint(60, (2, 16))
    before = net.hidden(ids)
    for place in (2, 14):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 60
        changed = (net.hidden(other) - before).abs().amax(-1) > 1e-6  # (2, 16)
        assert changed[0].all()
        assert not changed[1].any()


def test_segments_matter_and_dropout_is_of_training_alone() -> None:
    net, ids = small(dropout=0.5), torch.randint(60, (1, 16))
    assert not torch.allclose(net.hidden(ids), net.hidden(ids, token_type_ids=torch.ones_like(ids)))
    assert torch.equal(net.hidden(ids), net.hidden(ids))
    net.train()
    assert not torch.allclose(net.hidden(ids), net.hidden(ids))


def test_a_row_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens exceed block_size 16"):
        small()(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 3}, "n_embd 32 is not divisible by n_head 3"),
        ({"dropout": 1.0}, "dropout is 1.0: give a probability"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0: give a positive number"),
        ({"token_types": 0}, "token_types is 0: give at least 1"),
        ({"activation": "silu"}, "activation 'silu' is unknown"),
        ({"blocks": "gpt", "n_embd": 2}, "make it even"),
    ],
)
def test_a_configuration_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BertConfig(**{**SMALL, **options})
