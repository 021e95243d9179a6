"""Import and export of Hugging Face's BERT, weights to start from, and filling masks with what was imported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import UserError
from datamodules.tokenizers import ByteTokenizer, WordPieceTokenizer
from lit_gpt.bert.config import BertConfig
from lit_gpt.bert.filling import MaskFiller, load
from lit_gpt.bert.model import Bert
from lit_gpt.checkpoint import KEY, build_network
from lit_gpt.commands import run
from lit_gpt.interop.exporting import export_huggingface, export_safetensors
from lit_gpt.interop.importing import import_checkpoint, imported, load_pretrained
from lit_gpt.model import GPT, GPTConfig
from tests.lit_gpt.interop.cases import checkpoint_of
from tests.test_bert_network import difference, small, theirs, two_segments

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

WORDS = ["the", "a", "capital", "of", "france", "is", "paris", "london", "##s", "##ing", "big", "city", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, *WORDS, *(f"word{i}" for i in range(42))]  # 60
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "mlp_width": 64, "block_size": 16, "vocab_size": len(TOKENS)}


def folder_of(path: Path, kind: str = "BertForPreTraining", **options: Any) -> Any:
    """A random model of one of their classes in a folder with its vocabulary."""
    whole = theirs(SHAPE, **options)
    net = getattr(transformers, kind)(whole.config).eval()
    prefix = "bert." if kind == "BertModel" else ""
    net.load_state_dict({n.removeprefix(prefix): t for n, t in whole.state_dict().items()}, strict=False)
    net.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return net


def ids_of(tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens.split()]


def change_config(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "left out"}))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("BertForPreTraining", []),
        ("BertForMaskedLM", ["the weights have no pooler"]),
        ("BertModel", ["no next-sentence head: it begins with random ones", "no MLM head: it begins with random ones"]),
    ],
)
@torch.no_grad()
def test_each_class_comes_with_what_it_has(kind: str, told: list[str], tmp_path: Path) -> None:
    net = folder_of(tmp_path, kind)
    checkpoint, notes = imported(tmp_path)
    assert len(notes) == len(told)
    assert all(part in " ".join(notes) for part in told)
    ours, batch = build_network(checkpoint), two_segments(3, 16, 60)
    real = batch["attention_mask"]
    found = net(**{**batch, "attention_mask": real.long()}, output_hidden_states=True)
    hidden = ours.hidden_of_batch(batch)
    torch.testing.assert_close(hidden[real], found.hidden_states[-1][real], atol=1e-5, rtol=1e-5)
    if kind == "BertForMaskedLM":
        torch.testing.assert_close(ours.head(hidden[real]), found.logits[real], atol=1e-5, rtol=1e-5)
    elif kind == "BertModel":
        pooled = torch.tanh(ours.pooler(hidden[:, 0]))
        torch.testing.assert_close(pooled, found.pooler_output, atol=1e-5, rtol=1e-5)
    assert checkpoint[KEY]["tokenizer"]["vocab"] == TOKENS


@torch.no_grad()
def test_an_export_reloads_as_each_class_with_equal_outputs(tmp_path: Path) -> None:
    folder_of(tmp_path / "in")
    checkpoint = import_checkpoint(tmp_path / "in")
    export_huggingface(checkpoint, tmp_path / "out")
    net, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    ours, batch = build_network(checkpoint), two_segments(3, 16, 60)
    assert max(difference(net.eval(), ours, batch).values()) < 1e-5
    auto = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    logits = auto(batch["input_ids"], token_type_ids=batch["token_type_ids"]).logits
    hidden = ours.hidden(batch["input_ids"], token_type_ids=batch["token_type_ids"])
    torch.testing.assert_close(ours.head(hidden), logits, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The capital of France is [MASK]."
    assert tokenizer(text)["input_ids"] == ids_of("[CLS] the capital of france is [MASK] . [SEP]")
    assert tokenizer.mask_token_id == TOKENS.index("[MASK]")
    (tmp_path / "out" / "vocab.txt").unlink()  # tokenizer.json has it too
    again = import_checkpoint(tmp_path / "out")
    assert again[KEY] == checkpoint[KEY]
    assert all(torch.equal(again["state_dict"][n], t) for n, t in checkpoint["state_dict"].items())


def test_an_export_without_next_sentence_is_a_masked_lm(tmp_path: Path) -> None:
    net = small(next_sentence=False)
    export_huggingface(checkpoint_of(net, WordPieceTokenizer(TOKENS)), tmp_path)
    back, report = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(60, (2, 16))
    torch.testing.assert_close(back.eval()(ids).logits, net(ids), atol=1e-5, rtol=1e-5)


def test_names_of_googles_norms_and_second_copies(tmp_path: Path) -> None:
    net = folder_of(tmp_path)
    state = {
        n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for n, t in net.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    worst = difference(net, build_network(import_checkpoint(tmp_path)), two_segments(3, 16, 60))
    assert max(worst.values()) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act silu of the imported config.json has no counterpart here: .* gelu or"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"sparse_attention": 4}, "sparse_attention of the imported config.json is an option that"),
        ({"hidden_size": "left out"}, "lacks 'hidden_size'"),
        ({"hidden_size": 64}, "has another shape than the imported config.json says"),
        ({"num_hidden_layers": 3}, r"lack bert\.encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"hold bert\.encoder\.layer\.1.*no place for"),
        ({"num_attention_heads": 5}, "n_embd 32 is not divisible by n_head 5"),
        ({"layer_norm_eps": -1.0}, "norm_eps is -1.0"),
        ({"model_type": "t5"}, "model_type 't5' cannot be imported: gpt2, llama and bert can"),
    ],
)
def test_folders_that_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder_of(tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path)


def test_vocabularies_that_are_none(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "vocab.txt").write_text("just\nsome\nwords\n")
    with pytest.raises(UserError, match=r"vocab\.txt is no WordPiece vocabulary"):
        import_checkpoint(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"holds neither vocab\.txt nor the tokenizer\.json of a WordPiece"):
        import_checkpoint(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*TOKENS, "more"]))
    with pytest.raises(UserError, match="has 61 tokens, the model 60: use the model's own"):
        import_checkpoint(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": False}))
    with pytest.raises(UserError, match=r"strip_accents false .* has no counterpart here"):
        import_checkpoint(tmp_path)


def test_what_has_no_counterpart_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no BERT of Hugging Face has blocks gpt: export with --format safetensors"):
        export_huggingface(checkpoint_of(small(blocks="gpt")), tmp_path)
    with pytest.raises(UserError, match="has activation relu2"):
        export_huggingface(checkpoint_of(small(activation="relu2")), tmp_path)


# Weights that a run starts from


def test_a_run_starts_from_fewer_positions_and_other_heads(tmp_path: Path) -> None:
    net = folder_of(tmp_path, "BertForMaskedLM")
    ours = Bert(BertConfig(**SHAPE | {"block_size": 8}, dropout=0.0)).eval()
    notes = load_pretrained(ours, tmp_path, WordPieceTokenizer(TOKENS))
    assert [note.split(" ")[0] for note in notes[-2:]] == ["pair_head", "pooler"]
    ids = torch.randint(60, (2, 8))
    torch.testing.assert_close(ours(ids), net(ids).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"set --model\.config\.n_layer 2"):
        load_pretrained(Bert(BertConfig(**SHAPE | {"n_layer": 1})), tmp_path)
    with pytest.raises(UserError, match="has block_size 16, not 32: set it to 16 or less"):
        load_pretrained(Bert(BertConfig(**SHAPE | {"block_size": 32})), tmp_path)
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        load_pretrained(ours, tmp_path, WordPieceTokenizer([*TOKENS[:-1], "another"]))


def test_a_gpt_starts_from_no_bert_nor_the_other_way_round(tmp_path: Path) -> None:
    folder_of(tmp_path / "bert")
    decoder = GPT(GPTConfig(block_size=16, vocab_size=60, n_layer=1, n_head=2, n_embd=8))
    with pytest.raises(UserError, match="holds a Bert, which is no GPT"):
        load_pretrained(decoder, tmp_path / "bert")
    export_safetensors(checkpoint_of(decoder), tmp_path / "gpt")
    with pytest.raises(UserError, match="holds a GPT, which is no Bert"):
        load_pretrained(small(), tmp_path / "gpt")


# The verbs


def saved(net: Any, tokenizer: Any, path: Path) -> str:
    written = {"global_step": 0, "epoch": 0, "pytorch-lightning_version": "2.6.0"}
    torch.save({**checkpoint_of(net, tokenizer), **written}, path)
    return str(path)


def test_import_then_fill_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, out = folder_of(tmp_path / "in"), str(tmp_path / "bert.ckpt")
    run("import", ["--source", str(tmp_path / "in"), "--out", out])
    assert "fill-mask --ckpt_path" in capsys.readouterr().out
    text = "The capital of [MASK] is [MASK]."
    run("fill-mask", ["--ckpt_path", out, "--text", text, "--top_k", "3", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    ids = torch.tensor([ids_of("[CLS] the capital of [MASK] is [MASK] . [SEP]")])
    with torch.no_grad():
        chances = net(ids).prediction_logits[ids == TOKENS.index("[MASK]")].softmax(-1).topk(3)
    wanted = []
    for number, (best, values) in enumerate(zip(chances.indices.tolist(), chances.values.tolist(), strict=True), 1):
        wanted += [["[MASK]", str(number), "of", "2"]]
        wanted += [[TOKENS[i], f"{value:.4f}"] for i, value in zip(best, values, strict=True)]
    assert [line.split() for line in lines] == wanted


def test_ids_that_the_tokenizer_lacks_fill_no_mask() -> None:
    """A network may have more rows than the vocabulary, for the hardware's sake."""
    net = small(vocab_size=len(TOKENS) + 8)
    with torch.no_grad():
        net.mlm_bias[-8:] = 5.0
    logits = net(torch.tensor([[TOKENS.index(name) for name in ("[CLS]", "[MASK]", "[SEP]")]]))[0, 1]
    wanted = logits.softmax(-1)[: len(TOKENS)].topk(3)
    found = MaskFiller(net.eval(), WordPieceTokenizer(TOKENS)).fill("[MASK]", 3)[0]
    assert [name for name, _ in found] == [TOKENS[i] for i in wanted.indices]
    assert [p for _, p in found] == pytest.approx(wanted.values.tolist())


def test_weights_with_more_rows_than_their_vocabulary_are_named(tmp_path: Path) -> None:
    own, V = WordPieceTokenizer(TOKENS), len(TOKENS)
    path = saved(small(vocab_size=V + 8), own, tmp_path / "padded.ckpt")
    with pytest.raises(UserError, match=f"has vocab_size {V + 8}, not {V}: set --model.config.vocab_size {V + 8}"):
        load_pretrained(small(vocab_size=V), path, own)
    with pytest.raises(UserError, match="give the data the tokenizer of these weights"):
        load_pretrained(small(vocab_size=V), path, WordPieceTokenizer([*TOKENS[:-1], "zzz"]))
    load_pretrained(small(vocab_size=V + 8), path, own)


def test_what_fill_mask_refuses(tmp_path: Path) -> None:
    own = WordPieceTokenizer(TOKENS)
    bert, tokens = saved(small(), own, tmp_path / "bert.ckpt"), GPTConfig(vocab_size=257, n_layer=1, n_embd=24)
    gpt = saved(GPT(tokens), ByteTokenizer(eos=True), tmp_path / "gpt.ckpt")
    bytes_ = saved(small(vocab_size=257), ByteTokenizer(eos=True), tmp_path / "bytes.ckpt")
    for path, text, message in (
        (bert, "Paris is a city.", r"has no \[MASK\]: write \[MASK\] in the place of each token"),
        (bert, "a " * 14 + "[MASK]", r"has 17 tokens with \[CLS\] and \[SEP\], and the network reads 16"),
        (gpt, "A [MASK].", "is of a GPT, which continues a text and fills no .* use python -m lit_gpt generate"),
        (bytes_, "A [MASK].", r"has no \[MASK\]: fill-mask needs a WordPiece vocabulary"),
        (str(tmp_path / "no.ckpt"), "A [MASK].", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            run("fill-mask", ["--ckpt_path", path, "--text", text, "--device", "cpu"])
    with pytest.raises(UserError, match="top_k"):
        run("fill-mask", ["--ckpt_path", bert, "--text", "A [MASK].", "--top_k", "0", "--device", "cpu"])


@pytest.mark.parametrize("verb", [["generate"], ["inspect", "--text", "a city"]])
def test_what_continues_a_text_refuses_an_encoder(verb: list[str], tmp_path: Path) -> None:
    path = saved(small(), WordPieceTokenizer(TOKENS), tmp_path / "bert.ckpt")
    with pytest.raises(
        UserError, match=r"is of a Bert, which predicts masked tokens .* use python -m lit_gpt fill-mask"
    ):
        run(*verb[:1], [*verb[1:], "--ckpt_path", path, "--device", "cpu"])


def test_the_export_verb_says_how_to_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(small(), WordPieceTokenizer(TOKENS), tmp_path / "bert.ckpt")
    run("export", ["--ckpt_path", path, "--out", str(tmp_path / "out")])
    assert "transformers.AutoModelForMaskedLM.from_pretrained" in capsys.readouterr().out
    assert (tmp_path / "out" / "vocab.txt").read_text().split() == TOKENS


@pytest.mark.slow  # downloads 440 MB
def test_the_real_bert_knows_the_capital_of_france(tmp_path: Path) -> None:
    try:
        checkpoint, notes = imported("bert-base-uncased")
    except UserError as error:
        pytest.skip(str(error))
    assert not notes
    torch.save(checkpoint, tmp_path / "bert.ckpt")
    filled = load(tmp_path / "bert.ckpt").fill("The capital of France is [MASK].")[0]
    print(filled)
    assert filled[0][0] == "paris"
