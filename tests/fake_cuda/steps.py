"""Training steps and evaluations on CUDA tensors without memory: every device, every dtype, and no wait for the GPU.

    python -m tests.fake_cuda.steps LIBRARY

LIBRARY is the compiled stub.cpp. It is loaded before torch is imported. For each case a line of JSON is printed.
"""

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # the stub must come before torch
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(sys.argv[1])

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt import LitBERT, LitExtendedGPT, LitGPT, attention, checkpoint, language_model
from lit_gpt.bert import BertConfig
from lit_gpt.config import GPTConfig
from lit_gpt.language_model import LitLanguageModel
from lit_gpt.methods.config import ExtendedGPTConfig
from lit_gpt.optim import OptimizerConfig, build_optimizer

B, T, V = 2, 256, 300
SIZE: dict[str, Any] = {"vocab_size": V, "n_layer": 1, "n_head": 4, "n_embd": 64, "block_size": T}
ATEN = torch.ops.aten
#: Operations whose result the CPU has to know: it waits for the GPU.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "equal",
    "is_nonzero",
    "bincount",
}


class Watch(TorchDispatchMode):
    """Refuses whatever makes the CPU wait, and what joins tensors of two devices."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "overloadpacket", func).__name__
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in WAITING and any(t.is_cuda for t in tensors):
            raise AssertionError(f"{name} waits for the GPU")
        if func is ATEN.addmm.dtype_out:  # torch has no fake of this overload
            total, a, b, dtype = args
            assert kwargs["out"] is total
            assert (total.dtype, a.dtype, b.dtype, dtype) == (torch.float32, a.dtype, a.dtype, torch.float32)
            assert (a.size(0), a.size(1), b.size(1)) == (total.size(0), b.size(0), total.size(1))
            return total
        result = func(*args, **kwargs)
        results = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors if t.dim()} | {t.device.type for t in results}
        assert len(devices) <= 1, f"{name} joins {sorted(devices)}"
        return result


def windows(**more: Any) -> dict[str, Tensor]:
    """A batch of whole rows."""
    ids = torch.zeros(B, T, dtype=torch.int64, device="cuda")
    return {"input_ids": ids, "targets": ids.clone(), **more}


def padded() -> dict[str, Tensor]:
    """A batch of rows that are padded on the right."""
    mask = torch.ones(B, T, dtype=torch.bool, device="cuda")
    return windows(attention_mask=mask, document=torch.zeros(B, dtype=torch.int64, device="cuda"))


def packed() -> dict[str, Tensor]:
    """A batch of rows of several documents."""
    return padded() | {"document_ids": torch.zeros(B, T, dtype=torch.int32, device="cuda")}


def pairs() -> dict[str, Tensor]:
    """A batch of masked tokens in pairs of sentences, as data and transfer make it."""
    numbers = {name: torch.ones(1, dtype=torch.int64, device="cuda") for name in ("step_targets", "step_pairs")}
    labels = torch.zeros(B, dtype=torch.int64, device="cuda")
    places = torch.zeros(B * T // 8, dtype=torch.int64, device="cuda")
    types = torch.zeros(B, T, dtype=torch.int64, device="cuda")
    return padded() | numbers | {"token_type_ids": types, "next_sentence_label": labels, "places": places}


ROWS: dict[str, Callable[[], dict[str, Tensor]]] = {"windows": windows, "padded": padded, "packed": packed}
ROWS["pairs"] = pairs
#: Of GPTConfig.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "modern": {"pad_vocab_to": 64},
    "gpt2": {"norm": "layernorm", "norm_gain": True, "activation": "gelu_tanh", "learned_positions": True, "bias": True}
    | {"rope": False, "bias_qkv": True, "tied_head": True, "qk_norm": False, "softcap": None, "pad_vocab_to": 64},
    "llama": {"n_kv_head": 2, "norm_gain": True, "activation": "swiglu", "qk_norm": False, "softcap": None},
    "gated": {"attention_gate": True, "layer_scale": 0.1, "bias_head": True, "activation": "gelu"},
    "dropout": {"dropout": 0.1, "n_kv_head": 2, "activation": "relu"},
}
#: Of LitExtendedGPT: options of its config, and of itself.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "n-grams": ({"ngrams": [2, 3]}, {}),
    "parts": ({"token_parts": True, "n_parts": 20}, {}),
    "members": ({"members": 2}, {}),
    "R-Drop": ({"dropout": 0.1}, {"r_drop": 1.0}),
    "sampled softmax": ({}, {"sampled_softmax": 20}),
    "counts": ({"kneser_ney": 2}, {}),
}
#: Of autocast; None: none.
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
#: Of the weights, and of new tensors in a step.
PRECISIONS |= dict.fromkeys(TRUE := {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64})
#: Of the loss, where it is not float32.
LOSSES = {"64-true": torch.float64}
OPTIMIZERS = ["adamw", "muon", "sgd", "torch.optim.NAdam"]


def cases() -> Iterator[tuple[str, Callable[[], LitLanguageModel], str, str, str]]:
    """Every architecture with every kind of rows, precision and optimizer; every method with every kind of rows."""
    for name, options in ARCHITECTURES.items():
        build = lambda o=options: LitGPT(GPTConfig(**SIZE | o))  # noqa: E731
        for precision in PRECISIONS:
            yield name, build, "windows", precision, "adamw"
        for rows in ("padded", "packed"):
            yield name, build, rows, "bf16-mixed", "adamw"
        for kind in OPTIMIZERS[1:]:
            yield name, build, "windows", "bf16-mixed", kind
    for name, (options, more) in METHODS.items():
        for rows in ("windows", "padded", "packed"):
            extended = lambda o=options, m=more: LitExtendedGPT(ExtendedGPTConfig(**SIZE | o), **m)  # noqa: E731
            yield name, extended, rows, "bf16-mixed", "muon" if rows == "padded" else "adamw"
        for precision in TRUE:
            yield name, extended, "windows", precision, "adamw"
    for blocks in ("bert", "gpt"):
        bert = lambda b=blocks: LitBERT(BertConfig(**SIZE, blocks=b, dropout=0.1))  # noqa: E731
        for precision in PRECISIONS:
            yield f"BERT with blocks {blocks}", bert, "pairs", precision, "adamw"
    for option, value in (("activation_checkpointing", True), ("residual_dtype", "bfloat16")):
        for name, options in ARCHITECTURES.items():
            build = lambda o=options, k=option, v=value: LitGPT(GPTConfig(**SIZE | o), **{k: v})  # noqa: E731
            yield f"{option} {name}", build, "windows", "bf16-mixed", "adamw"


def run(build: Callable[[], LitLanguageModel], rows: str, precision: str, kind: str) -> None:
    """Two micro-batches, an optimizer step, the check of a save, and an evaluation."""
    torch.set_default_dtype(TRUE.get(precision, torch.float32))
    with FakeTensorMode(), torch.device("cuda"):
        module = build()
        module.configure_model()
        module._trainer = trainer(precision)  # type: ignore[assignment]
        optimizer, batch = build_optimizer(module.net, OptimizerConfig(kind=kind)), ROWS[rows]()
    # One thread: each of autograd's would have to know of the modes.
    with torch.autograd.set_multithreading_enabled(False), next(module.parameters()).fake_mode, Watch():  # type: ignore[union-attr]
        dtype = PRECISIONS[precision]
        module._r_drop_step = 0  # what `configure_optimizers` sets
        module.on_train_batch_start(batch, 0)
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            for _ in range(2):
                loss = module.training_step(batch, 0)
                assert (loss.device.type, loss.dtype) == ("cuda", LOSSES.get(precision, torch.float32))
                loss.backward()
        for name, parameter in module.net.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert (parameter.grad.dtype, parameter.grad.device) == (parameter.dtype, parameter.device)
        module.on_before_optimizer_step(optimizer)
        nn.utils.clip_grad_norm_(module.net.parameters(), 1.0)
        optimizer.step()
        module.eval()
        with torch.no_grad(), torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            module._score("val", batch)
    waits_once(module)


def waits_once(module: LitLanguageModel) -> None:
    """A save asks once whether all weights are finite."""
    asked: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ == "_local_scalar_dense":
                asked.append("")
                return 0.0  # the number of weights that are not finite
            return func(*args, **(kwargs or {}))

    language_model.undo_epoch_end = lambda *_: None  # type: ignore[assignment]
    checkpoint.describe = lambda *_: {}  # type: ignore[assignment]
    with Count():
        module.on_save_checkpoint({})
    assert len(asked) == 1, f"a save waits {len(asked)} times"


def trainer(precision: str) -> SimpleNamespace:
    """What a module asks a Trainer for during a step."""
    loop = SimpleNamespace(_load_combined_loader_states=lambda: None)
    facts: dict[str, Any] = {"world_size": 1, "accumulate_grad_batches": 2, "log_every_n_steps": 10, "global_step": 0}
    return SimpleNamespace(
        **facts, precision=precision, datamodule=None, fit_loop=loop, barebones=False, strategy=None, callbacks=[]
    )


def pretend() -> None:
    """An H100, and what needs a real one replaced."""
    torch.cuda.get_device_properties = lambda _=None: SimpleNamespace(major=9, minor=0, total_memory=2**37)  # type: ignore[assignment,misc]
    torch.cuda.is_bf16_supported = lambda **_: True  # type: ignore[assignment]
    language_model.sent_to_cpu = lambda _: lambda: B * T  # type: ignore[assignment] # pinned memory, which this cannot have
    nn.init.trunc_normal_ = lambda weight, **_: weight  # type: ignore[assignment] # asks whether a number is out of range
    # FlexAttention compiles itself, which a dispatch mode forbids: its block mask is built, and a causal kernel runs.
    attention._compiled_flex_attention = lambda: causal_attention  # type: ignore[assignment]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, enable_gqa: bool) -> Tensor:
    """Attention of a causal mask instead of a block mask, whose tables must be on the GPU."""
    assert block_mask.kv_indices.device == block_mask.full_q_indices.device == q.device
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)


def main() -> None:
    """Print a line for each case. Each is a process, so that what one leaves in memory is gone for the next."""
    pretend()
    for name, build, rows, precision, kind in cases():
        if not os.fork():
            problem: str | None = None
            try:
                run(build, rows, precision, kind)
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:400]}"
            print(json.dumps({"case": [name, rows, precision, kind], "problem": problem}), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
