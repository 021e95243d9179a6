"""The identifiers that were given other names, and a script that renames them in Python files.

    python -m benchmarks.house.rename my_module.py my_callbacks.py

Only names in code change; strings and comments stay. Run it once over code that was written against checkpoint
format 1. Modules that moved are in `MODULES`.
"""

import io
import re
import sys
import tokenize
from pathlib import Path

#: Old name, new name, and a pattern of the files that mean this by it.
NAMES: tuple[tuple[str, str, str], ...] = (
    ("_attend_openly", "_unfused_attention", "."),
    ("_attend_from_one", "_single_query_attention", "."),
    ("_attend_in_blocks", "_block_sparse_attention", "."),
    ("sentence", "friendly_error", "cli/|commands/|test_friendly"),
    ("obstacle", "why_not_resumable", "run_folder|lightning_cli|test_"),
    ("obstacles", "not_resumable", "run_folder|lightning_cli|test_"),
    ("claim", "new_run_folder", "run_folder|lightning_cli|test_"),
    ("_claim", "_new_version", "run_folder"),
    ("Hold", "RunLock", "."),
    ("_HOLDS", "_LOCKS", "run_folder"),
    ("is_held", "is_locked", "."),
    ("Share", "RankShare", "datamodules|test_"),
    ("IGNORED", "IGNORE_INDEX", "."),
    ("IGNORE", "IGNORE_INDEX", "."),
    ("step_figures", "step_metrics", "."),
    ("_figures", "_split_metrics", "language_model"),
    ("batch_nats", "batch_cross_entropy", "."),
    ("summed_nats", "cross_entropy_sum", "."),
    ("r_drop_nats", "r_drop_sum", "."),
    ("Softmax", "LossInputs", "loss|module|language_model|bigram"),
    ("say", "print_rank_zero", "lit_gpt/(module|language_model|methods)"),
    ("ResampledRows", "ResegmentedRows", "."),
    ("END_MARK", "EOS_TOKEN", "."),
    ("UNKNOWN_MARK", "UNKNOWN_TOKEN", "."),
    ("end_marks", "eos_tokens", "."),
    ("ComposedEmbedding", "PartsEmbedding", "."),
    ("earlier", "shift_right", "methods/"),
    ("_run_lengths", "_ngram_lengths", "kneser_ney"),
    ("_number", "_ngram_ids", "kneser_ney"),
    ("Runs", "Ngrams", "kneser_ney"),
    ("runs", "ngrams", "kneser_ney.py"),
    ("orthogonal", "muon", "test_"),
    ("FREE", "CHANGEABLE_OPTIONS", "run_folder"),
    ("Undrawn", "WithoutInitialisation", "."),
    ("way_on", "how_to_go_on", "."),
    ("attention_mask_for", "build_mask", "."),
    ("rotation", "rotary_cos_sin", "lit_gpt/|test_"),
    ("rotate", "apply_rotary", "lit_gpt/|test_"),
    ("Rotation", "CosSin", "lit_gpt/|test_"),
    ("positions", "position_ids", "attention"),
    ("kv_heads", "resolved_n_kv_head", "lit_gpt/"),
    ("mlp_hidden", "resolved_mlp_width", "."),
    ("norm_epsilon", "resolved_norm_eps", "."),
    ("score_dropout", "resolved_attention_dropout", "."),
    ("vocab_rows", "padded_vocab_size", "."),
    ("vocabulary", "resolve_vocab_size", "lit_gpt/(config|language_model)"),
    ("as_typed", "format_value", "."),
    ("check_fits", "check_memory", "."),
    ("wrong_numbers", "invalid_numbers", "."),
    ("bigram", "build_bigram", "bigram|baselines"),
    ("CountedFeatures", "HiddenWithContexts", "."),
)
#: Modules that moved.
MODULES = {
    "lit_gpt.module_gpt": "lit_gpt.module",
    "lit_gpt.module_bigram": "lit_gpt.baselines.module",
    "lit_gpt.bigram": "lit_gpt.baselines.bigram",
    "lit_gpt.composed": "lit_gpt.methods.token_parts",
    "lit_gpt.ngrams": "lit_gpt.methods.ngrams",
    "lit_gpt.ensemble": "lit_gpt.methods.ensemble",
    "lit_gpt.kneser_ney": "lit_gpt.methods.kneser_ney",
    "lit_gpt.sampled": "lit_gpt.methods.sampled_softmax",
    "lit_gpt.networks": "lit_gpt.methods.extended_gpt",
    "lit_gpt.orthogonal": "lit_gpt.muon",
    "lit_gpt.sync": "lit_gpt.distributed",
    "lit_gpt.dropout": "lit_gpt.attention",
    "lit_gpt.interop": "lit_gpt.interop.files",
    "lit_gpt.huggingface": "lit_gpt.interop.gpt2_llama",
    "lit_gpt.run": "lit_gpt.callbacks.run_folder",
    "lit_gpt.loggers": "lit_gpt.callbacks.metrics_csv",
    "lit_gpt.cli": "lit_gpt.cli.lightning_cli",
    "datamodules.facts": "datamodules.corpus_stats",
    "datamodules.resampling": "datamodules.resegmented_rows",
}


def main() -> None:
    """Rename in the files of the command line."""
    for argument in sys.argv[1:]:
        path = Path(argument)
        before = path.read_text(encoding="utf-8")
        after = renamed(before, argument)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"renamed: {argument}")


def renamed(source: str, path: str) -> str:
    """The source with every old identifier replaced by its new name."""
    names = {old: new for old, new, where in NAMES if re.search(where, path)}
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token in reversed(tokens):  # from the end, so that places before stay right
        if token.start[0] == token.end[0] and (new := _renamed_token(token, names)) != token.string:
            row, column = token.start[0] - 1, token.start[1]
            line = lines[row]
            lines[row] = line[:column] + new + line[column + len(token.string) :]
    return "".join(lines)


def _renamed_token(token: tokenize.TokenInfo, names: dict[str, str]) -> str:
    """A name, or an f-string with the names in its braces."""
    if token.type == tokenize.NAME:
        return names.get(token.string, token.string)
    if token.type == tokenize.STRING and re.match(r"\w*f\w*['\"]", token.string, re.IGNORECASE):
        inside = re.compile(r"\{[^{}]*\}")
        return inside.sub(lambda m: re.sub(r"\b\w+\b", lambda w: names.get(w[0], w[0]), m[0]), token.string)
    return token.string


if __name__ == "__main__":
    main()
