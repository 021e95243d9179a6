"""LitBERT: its loss is Hugging Face's, both labels of a pair are learned, and every verb knows what an encoder is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import BertDataModule, BPEDataModule
from datamodules.errors import UserError
from lit_gpt import BertConfig, GPTConfig, LitBERT, LitGPT, OptimizerConfig
from lit_gpt.attention import build_mask
from lit_gpt.bert.config import PRESETS
from lit_gpt.bert.module import places_of
from lit_gpt.cli.early import check
from lit_gpt.cli.lightning_cli import run
from lit_gpt.cli.options import CLASS_OF_PRESET
from lit_gpt.diagnostics.doctor import Setup, examine
from tests.lit_gpt.test_language_model import trainer
from tests.test_bert_network import SMALL, theirs, two_segments

Batch = dict[str, torch.Tensor]


def module(**options: Any) -> LitBERT:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(lr=0.003, schedule="constant", weight_decay=0.0)
    model = LitBERT(BertConfig(**{**SMALL, "dropout": 0.0, **options}), optimizer)
    model.configure_model()
    return model


def masked_batch(rows: int = 4) -> Batch:
    batch = two_segments(rows, 16, 60)
    masked = (torch.rand(rows, 16) < 0.3) & batch["attention_mask"]
    targets = batch["input_ids"].where(masked, -100)
    labels = torch.tensor([0, 1, -100, 1] * rows)[:rows]
    return {**batch, "input_ids": batch["input_ids"].masked_fill(masked, 4), "targets": targets} | {
        "next_sentence_label": labels
    }


def test_loss_and_gradients_are_those_of_hugging_face() -> None:
    """The sum over a batch, divided by its masked tokens, is their mean of masked tokens plus their mean of pairs."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "mlp_width": 128, "block_size": 16, "vocab_size": 60}
    net = theirs(shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = module()
    from lit_gpt.interop.bert import _their_name, from_huggingface

    model.net.load_state_dict(from_huggingface(net.config.to_dict(), dict(net.state_dict()))[1])
    batch = masked_batch()
    names = {"labels": batch["targets"], "next_sentence_label": batch["next_sentence_label"]}
    real = batch["attention_mask"].long()
    found = net(batch["input_ids"], attention_mask=real, token_type_ids=batch["token_type_ids"], **names)
    found.loss.backward()
    loss, sums = model.objective(batch)
    scored = len(places_of(batch["targets"]))
    (loss / scored).backward()
    wanted = float(found.loss.detach())
    assert float(loss.detach()) / scored == pytest.approx(wanted, rel=1e-5)
    assert float(sums["loss"] + sums["nsp_loss"]) / scored == pytest.approx(wanted, rel=1e-5)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    for name, parameter in model.net.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[_their_name(name)], atol=1e-5, rtol=1e-4)


def test_places_found_ahead_change_nothing_and_a_batch_may_have_none() -> None:
    model, batch = module(), masked_batch()
    sent = model._apply_batch_transfer_handler(batch, torch.device("cpu"))
    assert torch.equal(model.objective(sent)[0], model.objective(batch)[0])
    nothing = {**batch, "targets": torch.full_like(batch["targets"], -100)}
    loss, sums = model.objective({**nothing, "next_sentence_label": torch.full((4,), -100)})
    loss.backward()
    assert float(loss.detach()) == float(sums["nsp_loss"]) == 0.0
    assert not any(p.grad.any() for p in model.net.parameters() if p.grad is not None)


def test_two_halves_are_the_whole_in_float64() -> None:
    """Nothing on the way rounds to float32."""
    model, batch = module().double(), masked_batch(8)
    totals = model.step_totals([batch])
    gradients = []
    for parts in ([batch], [{name: value[rows] for name, value in batch.items()} for rows in (slice(3), slice(3, 8))]):
        model.zero_grad()
        torch.stack([model.objective({**part, **totals})[0] for part in parts]).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


def test_scores_are_of_masked_tokens_alone() -> None:
    model, batch = module().eval(), masked_batch()
    nats, rank = model.token_scores(batch)
    masked = batch["targets"] != -100
    with torch.no_grad():
        logits = model.net(**{n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids")})  # (4, 16, 60)
    wanted = torch.nn.functional.cross_entropy(logits[masked], batch["targets"][masked], reduction="none")
    torch.testing.assert_close(nats[masked], wanted)
    assert not nats[~masked].any()
    assert bool((rank[~masked] == 60).all())
    best = logits[masked].argsort(-1, descending=True)
    assert rank[masked].tolist() == [
        row.tolist().index(t) for row, t in zip(best, batch["targets"][masked], strict=True)
    ]


class Pairs(DataLoader):
    """Rows whose label says whether the token of the second segment is one of the upper half. Most are 0."""

    def __init__(self, seed: int, rows: int = 64) -> None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(6, 60, (rows, 16), generator=generator)
        labels = (torch.rand(rows, generator=generator) < 0.3).long()
        ids[:, 9] = torch.where(labels == 1, 50, 10)
        targets = torch.full_like(ids, -100)
        targets[:, 3] = ids[:, 3]
        ids[:, 3] = 4
        types = (torch.arange(16) > 7).long().expand(rows, -1)
        columns = {"input_ids": ids, "targets": targets, "token_type_ids": types, "next_sentence_label": labels}
        super().__init__([{n: v[i] for n, v in columns.items()} for i in range(rows)], batch_size=32)


def test_both_labels_of_a_pair_are_learned_and_measured(tmp_path: Path) -> None:
    model = module(n_layer=1)
    runner = trainer(tmp_path, max_steps=90)
    runner.fit(model, Pairs(1, 256))
    found: dict[str, float] = runner.validate(model, Pairs(2), verbose=False)[0]
    batch = next(iter(DataLoader(Pairs(2).dataset, batch_size=64)))
    with torch.no_grad():
        logits = model.eval().net.pair_logits(model.net.hidden_of_batch(batch))
    labels = batch["next_sentence_label"]
    right = logits.argmax(1) == labels
    for label in (0, 1):
        assert float(right[labels == label].float().mean()) > 0.95
    assert found["val/nsp_accuracy"] == pytest.approx(float(right.float().mean()))
    assert found["val/nsp_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert "val/top5" in found


def test_a_next_sentence_head_without_pairs_is_refused(tmp_path: Path, text: Path) -> None:
    data = BertDataModule(str(text), vocab_size=100, tokens_per_step=128, rows="packed")
    with pytest.raises(UserError, match=r"no pairs of sentences .* set --model\.config\.next_sentence false"):
        trainer(tmp_path, max_steps=1).fit(LitBERT(BertConfig(**{**SMALL, "vocab_size": None})), datamodule=data)


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_network_and_data_are_of_one_kind(tmp_path: Path, text: Path, stage: str) -> None:
    """An encoder reads next tokens off its input, and would train on them without an error."""
    masked = BertDataModule(str(text), vocab_size=100, block_size=16)
    following = BPEDataModule(str(text), vocab_size=300, block_size=16)
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16}
    bert, gpt = LitBERT(BertConfig(**small, next_sentence=False)), LitGPT(GPTConfig(**small))
    for model, data, message in (
        (bert, following, "a Bert fills masked tokens, and the targets of BPEDataModule are next tokens"),
        (gpt, masked, "a GPT predicts the next token, and BertDataModule masks tokens for an encoder"),
    ):
        with pytest.raises(UserError, match=message):
            getattr(trainer(tmp_path, max_steps=1), stage)(model, datamodule=data)


def test_segments_without_an_embedding_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has segment 1, .* embeds 1 from 0 on: set --model\.config\.token_types 2"):
        trainer(tmp_path, max_steps=1).fit(module(token_types=1), Pairs(1))


@pytest.mark.parametrize("blocks", ["bert", "gpt"])
def test_blocks_computed_again_have_the_same_gradients(blocks: str) -> None:
    batch, gradients = masked_batch(), []
    for again in (False, True):
        model = module(blocks=blocks)
        model.net.activation_checkpointing = again
        model.objective(batch)[0].backward()
        gradients.append([p.grad for p in model.train().parameters()])
    torch.testing.assert_close(*gradients)


# The verbs


TINY_BERT = ["--model", "LitBERT", "--data", "BertDataModule", "--data.vocab_size", "100"]
CPU = ["--trainer.accelerator", "cpu"]


def test_a_run_and_what_comes_after_it(fit: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    charts = ["--tensorboard.every_n_validations", "1", "--tensorboard.layers", "true"]
    folder = fit(*TINY_BERT, *charts, "--samples.max_new_tokens", "5")
    shown = capsys.readouterr().out
    assert "sample:" not in shown
    assert f"python -m lit_gpt fill-mask --ckpt_path {folder.relative_to(Path.cwd())}" in shown
    final = json.loads((folder / "summary.json").read_text())["final"]
    assert {"val/loss", "val/top1", "val/top5", "val/nsp_loss", "val/nsp_accuracy"} <= final.keys()
    assert not {"val/bpb", "val/nats_per_char"} & final.keys()
    run("validate", ["--ckpt_path", str(folder), *CPU])  # needs no --model
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("val "))
    assert f"{final['val/loss']:.4f}" in line
    run("predict", ["--ckpt_path", str(folder), *CPU])
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    tokens = [token for row in rows for token in row["tokens"]]
    mean = sum(token["nats"] for token in tokens) / len(tokens)
    assert mean == pytest.approx(final["val/loss"], abs=1e-4)


@pytest.mark.slow  # two seconds for a sum that the test of the network makes too
def test_a_plan_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", ["--plan", "--preset", "bert-large", "--data", "BertDataModule"])
    assert "336,226,108" in capsys.readouterr().out


def test_a_preset_of_a_bert_is_of_its_class() -> None:
    assert dict.fromkeys(PRESETS, "LitBERT") == CLASS_OF_PRESET
    check("fit", ["--preset", "bert-base", "--model.config.token_types", "2"])
    with pytest.raises(UserError, match="token_types"):
        check("fit", ["--preset", "gpt2", "--model.config.token_types", "2"])
    with pytest.raises(UserError, match="preset gpt2 is no architecture of LitBERT: choose one of bert-base"):
        run("fit", ["--preset", "gpt2", "--model", "LitBERT"])
    with pytest.raises(UserError, match="preset bert-tiny is no architecture of LitGPT: choose one of gpt2, "):
        run("fit", ["--preset", "bert-tiny", "--model", "lit_gpt.LitGPT"])


# What doctor finds


@pytest.mark.parametrize(("causal", "state"), [(False, "pass"), (True, "FAIL")])
def test_doctor_wants_an_encoder_to_see_both_sides(
    causal: bool, state: str, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if causal:  # an encoder whose tokens do not see those after them
        monkeypatch.setattr(
            "lit_gpt.bert.model.build_mask", lambda ids, **given: build_mask(ids, **given | {"causal": True})
        )
    config = BertConfig(**{**SMALL, "vocab_size": None, "block_size": 16}, blocks="gpt", next_sentence=False)

    def build() -> tuple[LitBERT, BertDataModule]:
        data = BertDataModule(str(text), vocab_size=100, tokens_per_step=256, rows="padded")
        return LitBERT(config, OptimizerConfig(lr=0.01)), data

    results = examine(Setup(build, {"max_steps": 4}), only=["causality", "targets shifted once", "whole validation"])
    by_name = {result.check: result for result in results}
    assert by_name["causality"].state == state, by_name["causality"].measured
    assert by_name["targets shifted once"].state == by_name["whole validation"].state == "not applicable"


def test_the_initial_loss_is_that_of_guessing() -> None:
    model, batch = module(), masked_batch(64)
    loss = float(model.objective(batch)[0].detach()) / len(places_of(batch["targets"]))
    assert model.net.expected_initial_loss() == pytest.approx(math.log(60) + math.log(2))
    assert loss == pytest.approx(model.net.expected_initial_loss(), abs=0.2)
