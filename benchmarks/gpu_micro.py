"""Where the time of a training step of GPT-2 124M goes on one GPU, part by part, in about two minutes.

    python -m benchmarks.gpu_micro            # on a CUDA device
    python -m benchmarks.gpu_micro --tiny     # the same path on any machine, with a small model

32 rows of 1,024 tokens under bfloat16 autocast, the vocabulary of 50,257 padded to 50,304. Milliseconds are means
over ten calls. Each figure is a line of JSON as soon as it is measured; among them are the lines that made the CPU wait
for the GPU during a step, and the slowest kernels.
"""

import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import report
from benchmarks.report import DEVICE
from benchmarks.timing import synchronize
from lit_gpt.callbacks.throughput import peak_flops
from lit_gpt.fused_loss import LinearHead
from lit_gpt.loss import cross_entropy_sum, score
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.optim import OptimizerConfig, build_optimizer

FULL: dict[str, Any] = {"vocab_size": 50257, "pad_vocab_to": 64}
TINY: dict[str, Any] = {
    "vocab_size": 250,
    "pad_vocab_to": 64,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 64,
    "block_size": 256,
}
ROWS = {False: 32, True: 2}


class Micro:
    """A network, a batch and the figures so far."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.net = GPT(GPTConfig.from_preset("gpt2", **(TINY if tiny else FULL))).to(DEVICE)
        self.config = self.net.config
        shape = ROWS[tiny], self.config.block_size + 1
        ids = torch.randint(self.config.vocab_size or 1, shape, device=DEVICE)
        self.inputs, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.figures: dict[str, Any] = {}

    def time(self, name: str, call: Callable[[], Any]) -> None:
        """Milliseconds of a call, once warm; or why there are none."""
        times = 2 if self.tiny else 10
        try:
            for _ in range(3):
                call()
            synchronize()
            start = time.perf_counter()
            for _ in range(times):
                call()
            synchronize()
            self.tell(name, round((time.perf_counter() - start) / times * 1e3, 3))
        except Exception as error:  # the other figures are still wanted
            self.tell(name, f"{type(error).__name__}: {str(error)[:160]}")

    def tell(self, name: str, value: Any) -> None:
        """Keep a figure and print it."""
        self.figures[name] = value
        report.show({name: value})

    def amp(self) -> Any:
        """bfloat16 autocast."""
        return torch.autocast(DEVICE, torch.bfloat16)

    def losses(self) -> None:
        """The loss of all tokens, forward and backward: chunked, fused, fused and compiled, and as nanoGPT has it."""
        net, V = self.net, self.config.vocab_size or 0
        hidden = torch.randn(*self.inputs.shape, self.config.n_embd, device=DEVICE, requires_grad=True)

        def ours(linear: LinearHead | None) -> None:
            with self.amp():
                nats = cross_entropy_sum(hidden, net.head, net.head_weights(), self.targets, V, None, linear)
            (nats / self.targets.numel()).backward()

        def whole(z: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(z, weight).flatten(0, 1).float(), targets.flatten())

        compiled = torch.compile(whole, dynamic=False)

        def nanogpt() -> None:
            with self.amp():
                loss = compiled(hidden, net.wte.weight, self.targets)
            loss.backward()

        self.time("loss ms, chunked", lambda: ours(None))
        self.time("loss ms, fused", lambda: ours(LinearHead()))
        self.time("loss ms, fused and compiled", lambda: ours(LinearHead(compiled=True)))
        self.time("loss ms, as nanoGPT has it, compiled", nanogpt)
        net.zero_grad()

    def kernels(self) -> None:
        """Attention of one layer, forward and backward, by kernel."""
        D = self.config.head_size
        shape = len(self.inputs), self.config.n_head, self.config.block_size, D
        q, k, v = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

        def attend(*backend: SDPBackend) -> None:
            with sdpa_kernel(list(backend)):
                F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

        for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            self.time(f"attention of a layer ms, {kernel.name}", partial(attend, kernel))

    @torch.no_grad()
    def packed(self) -> None:
        """A forward pass of four rows of several documents, by FlexAttention and with a dense mask, in float32."""
        net, ids = self.net.eval(), self.inputs[:4]
        documents = (torch.rand(ids.shape, device=DEVICE) < 0.02).cumsum(1).int()
        every = torch.ones_like(ids, dtype=torch.bool)  # a mask of pads is what makes it dense
        logits: dict[str, Tensor] = {}

        def forward(name: str, mask: Tensor | None) -> None:
            logits[name] = net(ids, document_ids=documents, attention_mask=mask)

        for name, mask in (("FlexAttention", None), ("a dense mask", every)):
            self.time(f"forward pass of 4 packed rows ms, {name}", partial(forward, name, mask))
        if len(logits) == 2:
            one, other = logits.values()
            self.tell("packed rows: largest difference", float((one - other).abs().max()))
            self.tell("packed rows: largest logit", float(other.abs().max()))
        net.train()

    def blocks(self, name: str) -> None:
        """All blocks, forward and backward."""

        def run() -> None:
            with self.amp():
                loss = self.net.hidden(self.inputs).float().mean()
            loss.backward()

        self.time(f"blocks ms, {name}", run)

    def micro_batch(self) -> None:
        """Forward and backward of a micro-batch."""
        net = self.net
        with self.amp():
            weights, V = net.head_weights(), self.config.vocab_size or 0
            nats = cross_entropy_sum(net.hidden(self.inputs), net.head, weights, self.targets, V, None, net.linear_head)
        (nats / self.targets.numel()).backward()

    def evaluate(self) -> None:
        """Loss and ranks of all targets."""
        net = self.net.eval()
        with torch.no_grad(), self.amp():
            score(
                net.hidden(self.inputs),
                net.head,
                net.head_weights(),
                self.targets,
                self.config.vocab_size or 0,
                net.linear_head,
            )
        net.train()

    def compile(self) -> None:
        """Compile blocks and loss, as `--model.compile true` does."""
        for block in self.net.blocks:
            block.compile()
        self.net.compiled = True

    def step(self) -> None:
        """The parts of an optimizer step, and the share of the device's peak that a micro-batch reaches."""
        self.time("micro-batch ms", self.micro_batch)
        flops = (self.net.flops_per_token() or 0) * self.targets.numel()
        milliseconds, peak = self.figures["micro-batch ms"], peak_flops(torch.device(DEVICE))
        if isinstance(milliseconds, float) and peak:
            self.tell("MFU of a micro-batch", round(flops / (milliseconds / 1e3) / peak, 3))
        optimizer, muon = (build_optimizer(self.net, OptimizerConfig(kind=kind)) for kind in ("adamw", "muon"))
        self.time("clip ms", lambda: torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0))
        self.time("AdamW ms", optimizer.step)
        self.time("Muon ms", muon.step)
        self.time("evaluation of a micro-batch ms", self.evaluate)
        if DEVICE == "cuda":
            self.tell("peak GB", round(torch.cuda.max_memory_allocated() / 1e9, 2))
            self.tell("lines that wait", waits(self.micro_batch) + waits(optimizer.step))

    def traces(self) -> None:
        """The kernels of a micro-batch."""
        self.tell("kernels ms", slowest(self.micro_batch))


def waits(call: Callable[[], Any]) -> list[str]:
    """The lines at which a call makes the CPU wait for the GPU."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in found if "synchroniz" in str(w.message)]


def slowest(call: Callable[[], Any], count: int = 25) -> dict[str, float]:
    """The kernels that take most of a call, in milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    return {event.key[:70]: round(event.self_device_time_total / 1e3, 3) for event in events[:count]}


def main() -> None:
    """Print every figure as it is measured, and all of them in the end."""
    parser = report.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model, on whatever there is")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high" if DEVICE == "cuda" else "highest")
    micro = Micro(options.tiny)
    micro.losses()
    if DEVICE == "cuda":
        micro.kernels()
        micro.blocks("eager")
    micro.compile()
    micro.blocks("compiled")
    micro.step()
    micro.net.residual_dtype = torch.bfloat16  # a block compiles for it anew, and keeps what it has
    micro.blocks("compiled, bfloat16 stream")
    micro.net.residual_dtype = None
    micro.packed()
    if DEVICE == "cuda":
        micro.traces()
    print(json.dumps({"benchmark": "gpu_micro", **micro.figures}))


if __name__ == "__main__":
    main()
