"""docs/headlines.md, from trials.yaml, headlines.json and the baseline's figure in reproductions.json."""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.reproductions.page import figure, table

RESULTS, PAGE = Path("docs/headlines.json"), Path("docs/headlines.md")
HEADER = """# The lowest loss on Hacker News titles in 7 epochs

The challenge: 100,000 titles, the first 90,000 to train on for 7 epochs, the last 10,000 to judge by, seed 1337, no
other text and no trained weights. titles.txt is not the challenge's own file but another 100,000 titles of the same
site, so figures are given as a share of the challenge's baseline on this file. The figure is `val/challenge_loss`: nats
of all validation tokens over the characters of all titles, an EOS token as 5. Every token is scored, every title
comes back exactly from its tokens, and the tokenizer has read the training titles alone. The challenge's first
convention leaves out some tokens but not their characters; `val/challenge_coverage` is the share of tokens that it has.

    python -m lit_gpt fit --config configs/headlines_cpu.yaml --data.source titles.txt
    python -m lit_gpt validate --ckpt_path logs/headlines_cpu/version_0/checkpoints/last.ckpt \\
        --data HeadlinesDataModule --data.strip true --data.source titles.txt --data.val_source others.txt

The first trains; the second scores any other file of titles, which nobody has tuned on.

This page is written by `python -m benchmarks.headlines --titles titles.txt`, which runs the trials of
`benchmarks/headlines/trials.yaml` that have no figure yet, and reads the runs' own files.
"""
RECORDS = ["config", "parameters", "steps", "challenge loss", "of the baseline", "after each epoch", "seconds", "on"]
TRIALS = ["trial", "change", "seeds", "challenge loss", "spread", "against base", "train", "val", "seconds", "verdict"]


def page(described: dict[str, Any], kept: dict[str, Any], baseline: dict[str, Any]) -> str:
    """Records, their stories, then every trial by scale."""
    parts = [HEADER, *_records(kept, described["baseline"], baseline)]
    for name, told in kept.get("records", {}).items():
        parts += _story(name, told)
    parts += [_others(name, told) for name, told in kept.get("others", {}).items()]
    parts += [_variation(told) for told in kept.get("tokenizers", {}).values()]
    parts.append("## Trials\n\n" + described["about"])
    for scale, about in described["scales"].items():
        trials = [trial for trial in described["trials"] if trial["scale"] == scale]
        rows = [row for trial in trials if (row := _row(trial, kept.get("trials", {})))]
        if rows:
            parts.append(f"### {about['titles']:,} titles\n\n{about['about']}\n\n{table(TRIALS, rows)}\n")
    return "\n".join(parts)


def _records(kept: dict[str, Any], published: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The table of results beside the baseline: our own run of it when it has ended, else the original recipe's."""
    if not kept.get("records"):
        return []
    ended = ours.get("finished")
    loss = ours["evaluations"][-1]["val/challenge_loss"] if ended else published["loss"]
    whose = "our own run of `configs/reproductions/headlines_sgd.yaml`" if ended else published["whose"]
    rows = []
    for name, told in kept["records"].items():
        last = told["losses"][-1]
        about = [f"`{name}`", f"{told['parameters']:,}", f"{told['steps']:,}", f"**{last:.4f}**"]
        curve = " ".join(f"{value:.3f}" for value in told["losses"])
        seconds = f"{told['training_seconds']:,.0f} + {told['validation_seconds']:,.0f}"
        rows.append([*about, f"**{last / loss:.3f}**", curve, seconds, f"{told['device']}, {told['precision']}"])
    text = f"The baseline is {loss:.4f}, {whose}. Seconds are those of training and of evaluation."
    others = "The baseline, AdamW and RoPE have the same pictures in [reproductions.md](reproductions.md).\n"
    return [f"## Results\n\n{text}\n\n{table(RECORDS, rows)}\n", figure(kept["figures"]["drawn"]) + "\n", others]


def _story(name: str, told: dict[str, Any]) -> list[str]:
    """Titles that a model finds hard and easy, and what it writes."""
    parts = [f"## What `{name}` has learned\n"]
    for kind in ("hardest", "easiest"):
        titles = table(["nats", "title"], [[str(nats), _verbatim(title)] for nats, title in told[kind]])
        parts.append(f"The {kind} validation titles, by nats per character:\n\n{titles}\n")
    written = "\n".join(f"- {_verbatim(title)}" for title in told["generated"])
    parts.append(f"Written at temperature 1, {told['copied']:.1%} of them copies of a training title:\n\n{written}\n")
    return parts


def _others(name: str, told: dict[str, Any]) -> str:
    """A record's loss on titles that nobody has tuned on, beside a character 6-gram's."""
    rows = []
    for who, of in ((f"`{name}`", told["network"]), ("character 6-gram", told["ngrams"])):
        validation, others = of["validation"], of["others"]
        losses = [f"{one['loss']:.4f} ± {one['error']:.4f}" for one in (validation, others)]
        rows.append([who, *losses, f"{others['loss'] / validation['loss'] - 1:+.2%}"])
    titles, other = (f"{told['titles'][file]:,}" for file in ("validation", "others"))
    return (
        f"## `{name}` on other titles\n\nThe challenge loss of the {titles} validation titles and of {other} others "
        "from the same site and years, none of which is among the 100,000. Nobody has tuned on those. Whether they are "
        "harder is told by a plain 6-gram of characters, counted from the same training titles, for which nothing was "
        "chosen. ± is a standard error over titles.\n\n"
        f"{table(['model', 'validation', 'others', 'difference'], rows)}\n\n"
        f"    python -m benchmarks.headlines.others --checkpoint logs/{name}/version_0/checkpoints/last.ckpt \\\n"
        "        --titles titles.txt --others others.txt\n"
    )


def _variation(told: dict[str, Any]) -> str:
    """How far the tokenizer moves from one training to the next."""
    common = " and ".join(f"{share:.1%}" for share in told["common"])
    tokens = ", ".join(f"{count:.3f}" for count in told["tokens"])
    times = len(told["tokens"])
    return (
        "## The tokenizer\n\nUnigram's sums run in parallel and may come out differently, so a run keeps its own. "
        f"Trained {times} times on the same training titles, it takes {tokens} tokens a held-out title, and {common} "
        "of its tokens are those of the first.\n"
    )


def _verbatim(title: str) -> str:
    return "`" + title.replace("`", "'").replace("|", "\\|") + "`"


def _row(trial: dict[str, Any], kept: dict[str, Any]) -> list[str] | None:
    found, base = _of(trial["scale"], trial["name"], kept), _of(trial["scale"], trial.get("base", "base"), kept)
    if not found:
        return None
    losses = [one["loss"] for one in found]
    spread = f"{stdev(losses):.4f}" if len(losses) > 1 else ""
    against = f"{fmean(losses) - fmean(one['loss'] for one in base):+.4f}" if base else ""
    means = [f"{fmean(one[name] for one in found):.4f}" for name in ("train", "val")]
    seconds = f"{fmean(one['seconds'] for one in found):,.0f}"
    about = [f"`{trial['name']}`", trial["about"], str(len(found)), f"{fmean(losses):.4f}", spread, against]
    return [*about, *means, seconds, trial.get("verdict", "")]


def _of(scale: str, name: str, kept: dict[str, Any]) -> list[dict[str, Any]]:
    return [figures for key, figures in kept.items() if key.rsplit("-", 1)[0] == f"{scale}-{name}"]
