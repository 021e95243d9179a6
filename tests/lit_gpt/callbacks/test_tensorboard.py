"""What TensorBoard gets: curves that overlay, settings, charts of predictions and layers, samples."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_gpt import GPTConfig, checkpoint
from lit_gpt.callbacks import chart_data, charts, layers
from lit_gpt.callbacks.samples import _as_html
from lit_gpt.cli.lightning_cli import run
from lit_gpt.model import GPT
from tests.lit_gpt.cli.conftest import rows

Fit = Callable[..., Path]
IGNORED = -100
#: The fixture `fit` draws none.
CHARTS = ("--tensorboard.every_n_validations", "1")


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"images": 0, "scalars": 0, "tensors": 0}).Reload()


def test_a_metric_of_all_splits_is_one_chart_with_the_values_of_metrics_csv(fit: Fit) -> None:
    folder = fit(*CHARTS)
    assert not list(folder.glob("*tfevents*"))  # no run without curves
    for split, name, tag in (
        *((split, f"{split}/loss", "metrics/loss") for split in ("train", "train_eval", "val")),
        ("val", "val/top1", "metrics/top1"),
        ("train", "lr/matrices", "optimizer/lr/matrices"),
        ("train", "grad_norm", "optimizer/grad_norm"),
        ("train", "train/step_seconds", "speed/step_seconds"),
    ):
        curve = {int(row["step"]): float(row[name]) for row in rows(folder) if row[name]}
        shown = {event.step: event.value for event in events(folder / split).Scalars(tag)}
        assert shown == pytest.approx(curve, rel=1e-6)
    tags = [tag for split in folder.glob("*/*tfevents*") for tag in events(split.parent).Tags()["scalars"]]
    assert not any("epoch" in tag for tag in tags)


def test_the_tab_hparams_has_what_differs_from_the_defaults_and_the_final_metrics(fit: Fit, text: Path) -> None:
    options = ("--model.optimizer.group_lr", "{matrices: 0.02}", "--seed_everything", "3", "--data.seed", "5")
    folder = fit(*CHARTS, *options)
    found = events(folder / "hparams")
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = {name: _value(x) for name, x in parse_session_start_info_plugin_data(content).hparams.items()}
    assert settings == {
        **{"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "group_lr": "{'matrices': 0.02}"},
        **{
            "tokens_per_step": 128,
            "source": str(text),
            "max_steps": 6,
            "accelerator": "cpu",
            "devices": "1",
            "seed": 3,
            "data.seed": 5,
        },
    }
    final = json.loads((folder / "summary.json").read_text())["final"]
    names = ("val/loss", "val/bpb", "val/top1", "val/top5", "train_eval/loss")
    metrics = {name: found.Scalars(name)[-1].value for name in found.Tags()["scalars"]}
    assert metrics == pytest.approx({name: final[name] for name in names}, abs=1e-6)


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind"))


def test_charts_are_drawn_and_leave_the_run_as_it_is(fit: Fit) -> None:
    dropout = ("--model.config.dropout", "0.2")
    plain = fit(*dropout, "--trainer.logger", "false")
    folder = fit(*CHARTS, *dropout, "--tensorboard.layers", "true")
    found = events(folder / "val")
    assert sorted(found.Tags()["images"]) == [
        *(f"network/{name}" for name in ("attention", "gradients", "outputs", "weights")),
        *(f"next_token/context_{n}" for n in (1, 2, 3)),
        *("tokens/frequencies", "tokens/loss_by_position"),
    ]
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [3, 6]
    one, two = (checkpoint.read(x / "checkpoints" / "last.ckpt") for x in (plain, folder))
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    assert torch.equal(*(x["callbacks"]["ExactResume"]["random"][0]["torch"] for x in (one, two)))


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_contexts_and_hides_later_steps(fit: Fit) -> None:
    flags = ("--model.optimizer.schedule", "constant", "--checkpoint.keep_every_n_steps", "3")
    folder = fit(*CHARTS, *flags)
    before = checkpoint.read(folder / "checkpoints" / "last.ckpt")["callbacks"]["TensorBoardCharts"]["contexts"]
    assert [len(context) for context in before] == [10, 13, 16]  # half of 16, 70 % and 90 %, and the next token
    resumed = str(folder / "checkpoints" / "step_000003.ckpt")
    fit(*CHARTS, *flags, "--ckpt_path", resumed, "--data.val_stride", "8", "--trainer.max_steps", "9")
    after = checkpoint.read(folder / "checkpoints" / "last.ckpt")["callbacks"]["TensorBoardCharts"]["contexts"]
    assert after == before


def test_charts_of_every_second_validation(fit: Fit) -> None:
    found = events(fit("--tensorboard.every_n_validations", "2") / "val")
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [6]
    assert found.Tags()["images"]


OTHER_MODELS = {
    "bigram": ("--model", "LitBigram"),
    "counts": ("--model", "LitBigram", "--model.config.kind", "counts"),
    "ensemble": ("--model", "LitExtendedGPT", "--model.config.members", "2", "--model.config.kneser_ney", "3"),
}
QUICK = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu")


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_have_charts(name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ("--model.config.block_size", "8", "--data.source", str(text), "--tensorboard.layers", "true")
    small = ("--model.config.n_layer", "1", "--model.config.n_head", "1", "--model.config.n_embd", "8")
    run("fit", [*OTHER_MODELS[name], *size, *QUICK, *(small if name == "ensemble" else ())])
    tags = events(Path("logs/run/version_0/val")).Tags()["images"]
    assert {"next_token/context_3", "tokens/frequencies", "tokens/loss_by_position", "network/weights"} <= {*tags}
    assert ("network/attention" in tags) == (name == "ensemble")


class Rows(LightningDataModule):
    """Rows of unequal padding, without a tokenizer, and a validation batch in which nothing is scored first."""

    vocab_size = 7

    def train_dataloader(self) -> DataLoader:
        ids = torch.arange(5) % 7
        blank = {"input_ids": ids, "targets": torch.full((5,), IGNORED)}
        return DataLoader([blank, *({"input_ids": ids, "targets": ids} for _ in range(3))], batch_size=1)

    val_dataloader = train_dataloader


class Plain(LightningModule):
    """Another module than ours, which logs a metric of its own in Lightning's way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger", "false", "default", "module"])
def test_every_logger_and_data_of_ones_own_work(logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--data", f"{__name__}.Rows", *QUICK, "--trainer.log_every_n_steps", "1")
    net = ("--model.config.block_size", "8", "--model.config.n_embd", "8", "--model.config.n_head", "1")
    if logger == "module":
        run("fit", ["--model", f"{__name__}.Plain", *flags])
        assert [e.value for e in events(Path("logs/run/version_0/val")).Scalars("metrics/loss")] == [1.0]
        return
    chosen = ["--trainer.logger", logger, "--trainer.logger.save_dir", "there"][: 2 if logger == "false" else 4]
    run("fit", [*net, *flags, *(chosen if logger != "default" else ())])
    folder = {"TensorBoardLogger": "there/lightning_logs/version_0", "default": "logs/run/version_0/val"}.get(logger)
    if folder:
        assert events(Path(folder)).Tags()["images"] == ["tokens/loss_by_position"]  # no context in the first batch


# ---- what the charts show


@pytest.fixture(scope="module")
def net() -> GPT:
    torch.manual_seed(0)
    size: dict[str, int] = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 16}
    return GPT(GPTConfig(**size, init="torch")).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def packed() -> dict[str, Tensor]:
    """Two rows of 12. The first has documents of 5 and 7 tokens; a target in the second is not scored."""
    torch.manual_seed(1)
    ids, targets = torch.randint(11, (2, 2, 12))
    targets[1, 3] = IGNORED
    return {"input_ids": ids, "targets": targets, "document_ids": torch.tensor([[0] * 5 + [1] * 7, [2] * 12])}


@torch.no_grad()
def test_probabilities_are_those_of_the_context_alone(net: GPT, packed: dict[str, Tensor]) -> None:
    contexts = chart_data.contexts_of(packed)
    assert contexts[0] == [*packed["input_ids"][0, 5:7].tolist(), int(packed["targets"][0, 6])]  # of its document
    for context, p in zip(contexts, chart_data.next_probabilities(net, contexts, packed), strict=True):
        alone = net(torch.tensor([context[:-1]]))[0, -1].softmax(-1)
        torch.testing.assert_close(p, alone)


@torch.no_grad()
def test_frequencies_are_of_the_scored_targets_and_of_predictions_there(
    net: GPT, packed: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = net(packed["input_ids"], document_ids=packed["document_ids"]).softmax(-1)
    scored = [(b, t) for b in range(2) for t in range(12) if packed["targets"][b, t] != IGNORED]
    monkeypatch.setattr(chart_data, "MAX_LOGITS_AT_ONCE", 50)  # pieces of 4 targets
    data, model, n = chart_data.frequencies(net, packed)
    assert n == len(scored) == 23
    counts = [sum(int(packed["targets"][place]) == token for place in scored) for token in range(11)]
    torch.testing.assert_close(data, torch.tensor(counts) / 23)
    torch.testing.assert_close(model, torch.stack([p[place] for place in scored]).mean(0))
    monkeypatch.setattr(chart_data, "MAX_POSITIONS", 8)  # every third target
    data, model, n = chart_data.frequencies(net, packed)
    assert n == 8
    torch.testing.assert_close(model, torch.stack([p[place] for place in scored[::3]]).mean(0))


def test_loss_by_position_counts_from_the_start_of_each_document(packed: dict[str, Tensor]) -> None:
    nats = torch.rand(2, 12)
    sums = chart_data.add_by_position(torch.zeros(2, 0), nats, packed)
    sums = chart_data.add_by_position(sums, nats, packed)  # twice the same: equal means
    by_length: dict[int, list[float]] = {}
    for b, t in ((b, t) for b in range(2) for t in range(12) if packed["targets"][b, t] != IGNORED):
        length = t + 1 if b or t < 5 else t - 4
        group = [n for n in (1, 2, 3, 4, 6, 8, 12) if n <= length][-1]  # two ranges a doubling
        by_length.setdefault(group, []).append((length, float(nats[b, t])))
    lengths, losses = chart_data.binned(sums)
    assert lengths == pytest.approx([np.mean([x for x, _ in by_length[n]]) for n in sorted(by_length)])
    assert losses == pytest.approx([np.mean([x for _, x in by_length[n]]) for n in sorted(by_length)])


@torch.no_grad()
def test_attention_weights_times_values_are_the_output_of_the_head(net: GPT, packed: dict[str, Tensor]) -> None:
    row, seen = packed["input_ids"][:1], []
    hooks = [block.attn.proj.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for block in net.blocks]
    hooks += [block.attn.qkv.register_forward_hook(lambda _, __, y: seen.append(y)) for block in net.blocks]
    net(row)
    for hook in hooks:
        hook.remove()
    maps = layers.attention_weights(net, row)
    assert list(maps) == ["layer 1, head 1", "layer 2, head 1"]
    for weights, qkv, output in zip(maps.values(), seen[::2], seen[1::2], strict=True):
        values = qkv[0, :, -8:]  # of the only head of keys and values, 8 channels
        np.testing.assert_allclose(weights @ values.numpy(), output[0, :, :8].numpy(), atol=1e-6)


def test_norms_of_layers_are_root_mean_squares(net: GPT, packed: dict[str, Tensor]) -> None:
    net(packed["input_ids"]).sum().backward()
    gradients = {p: p.grad for p in net.parameters() if p.grad is not None}
    with torch.no_grad():
        norms = layers.layer_norms(net, packed["input_ids"], gradients)
        hidden = net.hidden(packed["input_ids"])
    assert list(norms["weights"]) == ["wte", "blocks.0", "blocks.1", "norm", "lm_head"]
    block = np.concatenate([p.detach().numpy().ravel() for p in net.blocks[1].parameters()])
    assert norms["weights"]["blocks.1"] == pytest.approx(np.sqrt((block**2).mean()))
    assert net.lm_head is not None
    head = gradients[net.lm_head.weight].numpy()
    assert norms["gradients"]["lm_head"] == pytest.approx(np.sqrt((head**2).mean()))
    assert norms["outputs"]["norm"] == pytest.approx(np.sqrt((hidden.numpy() ** 2).mean()))
    assert norms["weights"]["norm"] == 0  # RMSNorm without weights


def test_labels_show_spaces_line_ends_bytes_and_no_mathematics() -> None:
    parts = {1: b" the", 2: b"\n", 3: "あ".encode()[:2], 4: b"a very long token", 5: b"$x_1$", 6: "あ".encode()}
    tokenizer: Any = SimpleNamespace(eos_id=0, vocab_size=7, decode_bytes=lambda ids: b"".join(parts[i] for i in ids))
    labels = chart_data.Labels(tokenizer)
    assert [labels(i) for i in range(5)] == ["EOS", "' the'", "'\\n'", "e3 81", "'a very long t…'"]
    assert labels.text([1, 2, 5]) == " the\\n$x_1$"
    assert chart_data.Labels(None)(3) == "3"
    assert labels(7) == "(id 7)"  # of a network that knows more ids than the tokenizer
    pixels = charts.next_tokens(labels.text([5, 6]), [labels(5), labels(6)], [0.5, 0.25], labels(6), 0.25)
    assert pixels.shape == (310, 420, 3)
    orange = (pixels == [0xFF, 0x7F, 0x0E]).all(-1)
    blue = (pixels == [0x1F, 0x77, 0xB4]).all(-1)
    assert blue.any(0).sum() == pytest.approx(2 * orange[:200].any(0).sum(), abs=3)  # 50 % beside 25 %


MARKS = "# no *title* <b>\n- `x` | y_1_\n1. [a](b) &amp; \\n ~~~"


@pytest.mark.parametrize("text", ["a\n\nb  c\n    indented", MARKS, "  x"])
def test_a_sample_is_shown_as_it_is(text: str) -> None:
    from markdown import markdown

    shown = markdown(_as_html(text), extensions=["markdown.extensions.tables", "markdown.extensions.fenced_code"])
    assert re.fullmatch(r"<p>([^<]|<br>)*</p>", shown)  # a paragraph wraps, and code would not
    assert html.unescape(shown[3:-4].replace("<br>", "\n")).replace("\xa0", " ") == text
