"""One CUDA GPU, bfloat16, compiled blocks, as docs/scale.md has them: a run, its resume, text from its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_gpt import fused_loss, loss
from lit_gpt.attention import attention
from lit_gpt.commands import run as run_command
from lit_gpt.fused_loss import LinearHead
from lit_gpt.methods.sampled_softmax import sample
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:::torch"),  # advice of the compiler's, such as on TensorFloat32
]
FLAGS = ["--trainer.accelerator", "cuda", "--trainer.precision", "bf16-mixed", "--model.compile", "true"]
FLAGS += ["--model.optimizer.schedule", "constant", "--model.config.n_embd", "64", "--trainer.val_check_interval", "3"]


def losses(folder: Path) -> list[float]:
    return [float(row["train/loss"]) for row in rows(folder) if row.get("train/loss")]


def test_a_compiled_run_in_bfloat16_learns_on_the_gpu(fit: Fit) -> None:
    folder = fit(*FLAGS, "--trainer.max_steps", "3")
    assert len(losses(folder)) == 3
    assert losses(folder)[-1] < losses(folder)[0]
    summary = (folder / "summary.json").read_text()
    assert torch.cuda.get_device_name() in summary
    assert "bf16-mixed" in summary


def test_packed_rows_of_two_blocks_learn_through_flex_attention(fit: Fit) -> None:
    packed = ["--data", "HeadlinesDataModule", "--data.source", "embedded_headlines:2000", "--data.rows", "packed"]
    packed += ["--data.tokens_per_step", "1024", "--model.config.block_size", "256"]
    packed += ["--model", "LitExtendedGPT", "--model.config.members", "2"]
    eager, compiled = (losses(fit(*FLAGS, *packed, "--model.compile", one)) for one in ("false", "true"))
    assert compiled[-1] < compiled[0]
    assert compiled == pytest.approx(eager, abs=0.02)  # bfloat16 rounds elsewhere


def test_a_resume_on_the_gpu_has_the_losses_of_a_straight_run(fit: Fit) -> None:
    folder = fit(*FLAGS, "--checkpoint.keep_every_n_steps", "3")
    straight = losses(folder)
    middle = folder / "checkpoints" / "step_000003.ckpt"
    assert fit(*FLAGS, "--ckpt_path", str(middle)) == folder
    assert losses(folder) == pytest.approx(straight, abs=1e-3)  # kernels that add in any order


def test_text_is_generated_on_the_gpu_from_the_checkpoint_alone(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*FLAGS, "--trainer.max_steps", "3")
    capsys.readouterr()
    flags = ["--prompt", "the ", "--max_new_tokens", "20", "--seed", "1", "--device", "cuda"]
    run_command("generate", ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), *flags])
    shown = capsys.readouterr().out
    assert shown.startswith("the ")
    assert len(shown.strip()) > len("the ")


def on_cpu_and_gpu(compiled: bool, dtype: torch.dtype | None) -> list[list[torch.Tensor]]:
    """Loss and gradients of a padded, softcapped head, nats and ranks: chunked on the CPU, fused on the GPU."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 300, 64), 0.1 * torch.randn(1024, 64)
    targets = torch.randint(1000, (4, 300))
    targets[0, :9] = loss.IGNORE_INDEX
    results = []
    for device in ("cpu", "cuda"):
        h, w, t = hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), targets.to(device)

        def head(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
            return 15 * torch.tanh(torch.nn.functional.linear(x, *weights)[..., :1000] / 15)

        linear = LinearHead(15.0, compiled)
        use = dtype is not None and device == "cuda"  # the CPU's results are exact
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=use):
            nats = loss.cross_entropy_sum(h, head, [w], t, 1000, None, linear)
            scores = loss.score(h, head, [w], t, 1000, linear)
        gradients = torch.autograd.grad(nats / 7, (h, w))
        results.append([x.detach().cpu().float() for x in (nats, *gradients, *scores)])
    return results


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "off"), [(None, 1e-4), (torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_the_fused_loss_equals_that_of_the_cpu(
    compiled: bool, dtype: torch.dtype | None, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss, "MAX_LOGITS", 400 * 1024)  # three chunks
    torch.set_float32_matmul_precision("highest")
    (nats, *expected, ranks), (found, *close, own_ranks) = on_cpu_and_gpu(compiled, dtype)
    assert found == pytest.approx(float(nats), rel=off)
    for one, other in zip(close, expected, strict=True):
        assert (one - other).norm() <= off * other.norm()
    assert (ranks - own_ranks).abs().mean() <= (0 if dtype is None else 15) + 1e-2


def test_attention_equals_that_of_the_cpu_by_every_way_to_share_keys() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 256, 64) for heads in (4, 2, 2))
    visible = torch.rand(2, 1, 256, 256) < 0.5
    visible |= torch.eye(256, dtype=torch.bool)
    for mask in (None, visible):
        expected = attention(q, k, v, mask=mask)
        for dtype, off in ((torch.float32, 1e-3), (torch.bfloat16, 0.02)):
            inputs = [x.to("cuda", dtype).requires_grad_() for x in (q, k, v)]
            y = attention(*inputs, mask=None if mask is None else mask.cuda())
            assert (y.float().cpu() - expected).norm() < off * expected.norm()
            assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), inputs))


def test_a_sampled_softmax_does_not_wait_for_the_gpu() -> None:
    targets = torch.randint(500, (4, 64), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = sample(targets, 500, 50, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.ids[found.targets], targets)


def test_a_bfloat16_residual_stream_and_float16_learn(fit: Fit) -> None:
    plain = losses(fit(*FLAGS, "--trainer.max_steps", "3"))
    for more in (["--model.residual_dtype", "bfloat16"], ["--trainer.precision", "16-mixed"]):
        assert losses(fit(*FLAGS, "--trainer.max_steps", "3", *more)) == pytest.approx(plain, abs=0.02)


def test_auto_leaves_the_run_as_it_is(fit: Fit) -> None:
    straight = losses(fit(*FLAGS, "--trainer.max_steps", "3"))
    assert losses(fit(*FLAGS, "--trainer.max_steps", "3", "--data.micro_batch_size", "auto")) == pytest.approx(
        straight, abs=1e-3
    )
