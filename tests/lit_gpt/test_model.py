"""The network: what each option means, that no token sees another it should not, and hand counts."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.tokens import TokenArrays
from lit_gpt.config import GPT2
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.methods.counts_gpt import GPTOnCounts
from lit_gpt.methods.extended_gpt import build_network
from lit_gpt.methods.kneser_ney import GPTWithCounts
from lit_gpt.model import GPT, PRESETS, GPTConfig

CLASSIC = {**GPT2, "block_size": 32, "activation": "gelu"}
LLAMA = {"n_kv_head": 2, "norm_gain": True, "activation": "swiglu", "qk_norm": False, "softcap": None}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "modern": {},
    "classic": CLASSIC,
    "llama": LLAMA,
    "both positions": {"learned_positions": True, "tied_head": True, "pad_vocab_to": 64},
    "gated and scaled": {"attention_gate": True, "layer_scale": 0.5},
    "an ensemble": {"members": 2, "learned_positions": True},
    "with counts": {"kneser_ney": 3, "kneser_ney_share": 0.5},
    "on counts": {"kneser_ney": 3, "kneser_ney_folds": 2},
}
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


def small(**options: Any) -> Any:
    """Two layers with weights large enough that every input matters to every output."""
    torch.manual_seed(0)
    size = {"block_size": 32, "vocab_size": 37, "n_layer": 2, "n_head": 4, "n_embd": 32}
    net = build_network(ExtendedGPTConfig(**{**size, **options}))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02 if name.endswith("wpe.weight") else 0.2)
    if isinstance(net, GPTWithCounts | GPTOnCounts):
        text = np.random.default_rng(0).integers(4, net.config.vocab_size, 2000)
        net.counts.count(TokenArrays(text, np.array([0, len(text)]), None))
    return net


def tokens(B: int, T: int, V: int = 37, seed: int = 1) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


@EVERY_ARCHITECTURE
def test_nothing_before_a_changed_token_moves(architecture: dict[str, Any]) -> None:
    net, ids = small(**architecture), tokens(2, 20)
    changed = ids.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 37
    difference = (net(ids) - net(changed)).abs().amax((0, 2))
    assert difference[:11].max() == 0
    assert (difference[11:] > 0).all()


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("T", [1, 7, 32])
def test_rows_may_be_shorter_than_the_block(architecture: dict[str, Any], T: int) -> None:
    net, ids = small(**architecture).eval(), tokens(2, 32)
    torch.testing.assert_close(net(ids[:, :T]), net(ids)[:, :T], atol=2e-5, rtol=1e-4)


def test_a_row_longer_than_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="33 tokens exceed the model's block_size 32"):
        small()(tokens(1, 33))


@EVERY_ARCHITECTURE
def test_order_matters(architecture: dict[str, Any]) -> None:
    net = small(**architecture)
    ids = torch.tensor([[1, 2, 3, 4, 9], [4, 3, 2, 1, 9]])
    ahead, swapped = net(ids)[:, -1]
    assert not torch.allclose(ahead, swapped, atol=1e-3)


INITIAL = [
    {"init": init, "tied_head": tied, "n_layer": n_layer, **more}
    for init in ("gpt2", "normal", "zero_proj", "torch")
    for tied in (False, True)
    for n_layer in (1, 6)
    for more in (
        {},
        {"norm": "layernorm", "norm_gain": True, "learned_positions": True, "rope": False, "softcap": None},
        {"attention_gate": True, "layer_scale": 0.1},
    )
    if not (init == "torch" and tied)
]


@pytest.mark.parametrize("options", INITIAL, ids=lambda o: "-".join(map(str, o.values())))
def test_the_initial_loss_is_near_ln_v(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, ids = GPT(GPTConfig(vocab_size=84, n_embd=192, n_head=6, block_size=64, **options)), tokens(8, 65, V=84)
    loss = F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    # torch's default draws a head of standard deviation 0.58 / sqrt(n_embd): half of its variance is 0.17 nats.
    assert loss.item() == pytest.approx(math.log(84), abs=0.25 if options["init"] == "torch" else 0.1)


def test_gpt2_init_scales_outputs_and_positions() -> None:
    torch.manual_seed(0)
    config = GPTConfig.from_preset("gpt2", vocab_size=500, n_layer=2, n_embd=256, n_head=4, position_std=0.01)
    net = GPT(config)
    stds = {name: p.std().item() for name, p in net.named_parameters() if p.ndim > 1}
    for name, std in stds.items():
        expected = 0.01 if name.endswith("wpe.weight") else 0.02 / math.sqrt(2 * 2) if ".proj." in name else 0.02
        assert std == pytest.approx(expected, rel=0.03), name
    assert all(p.abs().max() == 0 for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        # 50257 * 768 twice, and per block 768 * 1280 (qkv) + 768^2 + 3 * 768 * 2048, gains 25 * 768
        ("llama", 2 * 50257 * 768 + 12 * (768 * 1280 + 768**2 + 3 * 768 * 2048) + 25 * 768),
        ("modern", 2 * 50257 * 768 + 12 * 12 * 768**2),
    ],
)
def test_presets_have_their_published_or_hand_counted_size(name: str, total: int) -> None:
    with torch.device("meta"):
        net = GPT(GPTConfig.from_preset(name, vocab_size=50257))
    assert net.num_parameters() == total
    positions = 1024 * net.config.n_embd if net.wpe else 0
    assert net.num_parameters(positions=False) == total - positions
    assert net.num_parameters(embeddings=False, positions=False) == total - positions - 50257 * net.config.n_embd


def test_flops_of_gpt2_match_a_hand_count() -> None:
    with torch.device("meta"):
        net = GPT(GPTConfig.from_preset("gpt2", vocab_size=50257))
    weights = 12 * 12 * 768**2 + 50257 * 768  # 84,934,656 in blocks, 38,597,376 in the head
    assert net.flops_per_token() == 6 * weights + 12 * 12 * 768 * 1024
    assert net.flops_per_token(256) == 6 * weights + 12 * 12 * 768 * 256


def test_flops_of_the_gate_are_those_of_its_weights() -> None:
    plain, gated = small(), small(attention_gate=True, layer_scale=0.1)
    assert gated.flops_per_token() - plain.flops_per_token() == 6 * 2 * 4 * 32  # layers, heads, channels


def test_a_padded_vocabulary_never_shows() -> None:
    net = small(pad_vocab_to=64)
    assert net.wte.num_embeddings == 64
    assert net(tokens(2, 5)).shape == (2, 5, 37)
    net(tokens(2, 5)).sum().backward()
    assert net.lm_head is not None
    assert net.lm_head.weight.grad is not None
    assert net.lm_head.weight.grad[37:].abs().max() == 0


def test_softcap_bounds_logits_and_keeps_their_order() -> None:
    free, capped = small(softcap=None), small(softcap=2.0)
    ids = tokens(2, 9)
    assert free(ids).abs().max() > 2
    torch.testing.assert_close(capped(ids), 2 * torch.tanh(free(ids) / 2))


def test_dropout_is_off_in_eval_mode_and_on_in_training() -> None:
    net, ids = small(dropout=0.3), tokens(2, 16)
    assert not torch.equal(net(ids), net(ids))
    net.eval()
    assert torch.equal(net(ids), net(ids))
    torch.testing.assert_close(net(ids), small()(ids))


def test_dropout_drops_channels_of_the_embedding_and_of_what_each_half_of_a_block_adds() -> None:
    net, stream = small(dropout=0.5, attention_dropout=0.0), []
    block = net.blocks[0]
    block.register_forward_pre_hook(lambda _, x: stream.append(x[0]))
    block.norm2.register_forward_pre_hook(lambda _, x: stream.append(x[0]))
    block.register_forward_hook(lambda _, x, y: stream.append(y))
    net(tokens(4, 32))
    embedding, after_attention, after_mlp = stream
    for added in (embedding, after_attention - embedding, after_mlp - after_attention):
        assert (added.abs() < 1e-6).float().mean() == pytest.approx(0.5, abs=0.05)


def test_attention_has_its_own_dropout() -> None:
    ids = tokens(2, 16)
    for options in ({"dropout": 0.3, "attention_dropout": 0.0}, {"attention_dropout": 0.3}):
        net = small(**options)
        net.config.dropout = 0.0  # that of the embedding and, below, of the blocks' outputs
        for block in net.blocks:
            block.dropout = 0.0
        assert torch.equal(net(ids), net(ids)) is (net.config.resolved_attention_dropout == 0.0)


def test_grouped_heads_equal_repeated_heads() -> None:
    grouped, full = small(n_kv_head=2), small()
    weights = grouped.state_dict()
    for i in range(2):
        name = f"blocks.{i}.attn.qkv.weight"
        q, k, v = weights[name].view(8, 8, 32).split((4, 2, 2))
        weights[name] = torch.cat((q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0))).flatten(0, 1)
    full.load_state_dict(weights)
    ids = tokens(2, 20)
    torch.testing.assert_close(grouped(ids), full(ids))


@pytest.mark.parametrize("init", ["gpt2", "normal", "zero_proj"])
def test_a_fresh_gate_changes_nothing_and_layer_scales_start_at_their_value(init: str) -> None:
    size = {"block_size": 32, "vocab_size": 37, "n_layer": 2, "n_head": 4, "n_embd": 32, "init": init}
    gated, plain = GPT(GPTConfig(**size, attention_gate=True)), GPT(GPTConfig(**size))
    missing = plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "attn.gate" not in k})
    assert not missing.missing_keys
    assert torch.equal(gated(tokens(2, 20)), plain(tokens(2, 20)))
    scales = [p for name, p in GPT(GPTConfig(**size, layer_scale=0.1)).named_parameters() if "scale" in name]
    assert [p.shape for p in scales] == [(32,)] * 4
    assert all((p == 0.1).all() for p in scales)


def test_a_gate_multiplies_each_head_by_0_to_2_and_a_scale_each_channel() -> None:
    net, ids = small(attention_gate=True, layer_scale=0.5), tokens(2, 20)
    equal, weights = small(), {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            block.attn.gate.register_forward_hook(lambda m, x, y: torch.tensor([100.0, -100, -100, -100]).expand_as(y))
            block.scale1.copy_(torch.linspace(0.1, 1, 32))
            proj = f"blocks.{i}.attn.proj.weight"
            weights[proj] *= block.scale1[:, None] * torch.tensor([2.0, 0, 0, 0]).repeat_interleave(8)
            weights[f"blocks.{i}.mlp.proj.weight"] *= 0.5
    equal.load_state_dict({k: v for k, v in weights.items() if "gate" not in k and "scale" not in k})
    torch.testing.assert_close(net(ids), equal(ids))


def test_activation_checkpointing_changes_no_gradient() -> None:
    ids = tokens(2, 16)
    gradients = []
    for recompute in (False, True):
        net, calls = small(dropout=0.2), []
        net.activation_checkpointing = recompute
        net.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        net(ids).square().mean().backward()
        assert len(calls) == 1 + recompute
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@EVERY_ARCHITECTURE
def test_autocast_stays_finite_and_close(architecture: dict[str, Any]) -> None:
    net, ids = small(**architecture), tokens(2, 32)
    exact = net(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(ids)
        F.cross_entropy(rough.float().flatten(0, 1), ids.flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_whole_model_runs_in_bfloat16() -> None:
    net, ids = small(), tokens(2, 32)
    exact = net(ids)
    rough = net.to(torch.bfloat16)(ids)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_head_is_the_layer_that_decoding_makes_fast() -> None:
    net, ids = small(softcap=None), tokens(2, 8)
    assert net.lm_head is not None
    before, plain = net(ids), net.lm_head.forward
    net.lm_head.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]
    torch.testing.assert_close(net(ids), 2 * before)


def test_weights_are_named_plainly_and_nothing_else_is_saved() -> None:
    net = small(tied_head=True, learned_positions=True, activation="swiglu")
    block = ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj", "mlp.gate")
    assert list(net.state_dict()) == [
        "wte.weight", "wpe.weight", *(f"blocks.{i}.{layer}.weight" for i in range(2) for layer in block)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 100}, "n_embd 100 is not divisible by n_head 6: try n_embd 102."),
        ({"n_kv_head": 4}, "n_head 6 is not divisible by n_kv_head 4: choose a divisor."),
        ({"rope": False}, "would not know the order of its tokens: set rope or learned_positions"),
        ({"n_embd": 30}, "rope rotates pairs of channels, but n_embd / n_head is 5"),
        ({"tied_head": True, "bias_head": True}, "a tied head has no bias of its own"),
        ({"tied_head": True, "init": "torch"}, "init torch .* too large for a tied head"),
        ({"norm": "batchnorm"}, "norm 'batchnorm' is unknown: choose one of layernorm, rmsnorm."),
        ({"activation": "tanh"}, "activation 'tanh' is unknown"),
        ({"init": "xavier"}, "init 'xavier' is unknown"),
        ({"n_layer": 0}, "n_layer is 0: give at least 1."),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0: give a probability"),
        ({"softcap": 0.0}, "softcap is 0.0: give a positive number"),
        ({"rope_base": 1.0}, "rope_base is 1.0"),
        ({"layer_scale": 0.0}, "layer_scale is 0.0: give a positive number, such as 0.1, or null"),
        ({"position_std": -1.0}, "position_std is -1.0"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_fix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**options)


def test_explicit_values_win_over_a_preset() -> None:
    assert GPTConfig.from_preset("gpt2", n_layer=3, bias=False) == GPTConfig(
        **PRESETS["gpt2"] | {"n_layer": 3, "bias": False}
    )
    with pytest.raises(ValueError, match="preset 'gpt5' is unknown: choose one of gpt2, gpt2-medium"):
        GPTConfig.from_preset("gpt5")


def test_the_model_needs_torch_only() -> None:
    heavy = {"lightning", "torchmetrics", "jsonargparse"}
    code = (
        f"import sys, lit_gpt.model, lit_gpt.baselines.bigram, lit_gpt.generate; assert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@EVERY_ARCHITECTURE
def test_a_block_compiles_without_breaks_and_gives_the_same(architecture: dict[str, Any]) -> None:
    plain, compiled = small(**architecture), small(**architecture)
    for block in (block for gpt in compiled.trained_nets() for block in gpt.blocks):
        block.compile(fullgraph=True)
    ids, documents = tokens(2, 32), torch.tensor([0, 1]).repeat_interleave(16).repeat(2, 1)
    packed = [] if "kneser_ney_folds" in architecture else [{"document_ids": documents}]  # or running text alone
    for options in ({}, *packed):
        torch.testing.assert_close(compiled(ids, **options), plain(ids, **options))
    assert list(compiled.state_dict()) == list(plain.state_dict())
