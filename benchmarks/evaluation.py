"""CPU time of one validation pass, beside a plain loop of cross_entropy and topk over the full logits.

    python -m benchmarks.evaluation [--cases char bert headlines gpt2] [--rounds 3] [--titles FILE] [--record]

Both evaluate the same network on the same batches, in turn: the validation split and as much of the training split. The
networks are those of the configs, untrained; gpt2 is one of 6 layers of 384 channels and 50,304 tokens. The plain loop
is what users of nanoGPT and transformers write. Needs the ``bench`` extra. The last line is JSON.
"""

import logging
import statistics
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer, seed_everything

from benchmarks import report
from lit_gpt.loss import IGNORE_INDEX
from lit_gpt.optim import OptimizerConfig
from lit_gpt.protocols import data_of

GPT2_SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 50_304}
#: The config of each case, and what is changed in its network and its data.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "char": ("char", {}, {}),
    "bert": ("bert_tiny", {}, {}),
    "headlines": ("headlines_cpu", {}, {"val_fraction": 0.02}),
    "gpt2": ("char", GPT2_SHAPE, {"class_path": "datamodules.BPEDataModule", "tokenizer": "gpt2"}),
}


def main() -> None:
    """Time every case and print."""
    parser = report.parser(__doc__, rounds=3, threads=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="networks, by their config")
    parser.add_argument(
        "--titles", default="embedded_headlines", help="the text of the case headlines: a file of titles, one a line"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    figures, lines = {}, []
    with tempfile.TemporaryDirectory() as cache:
        for case in options.cases:
            figures[case] = measured(*built(case, options.titles, cache), options.rounds)
            lines.append(line(case, figures[case]))
            print(lines[-1], flush=True)
    report.finish("evaluation", figures, lines, options)


def line(case: str, found: dict[str, Any]) -> str:
    """The page's line of a case."""
    return (
        f"- {case}: {found['cpu_seconds']:.2f} s, plain loop {found['plain_cpu_seconds']:.2f} s, ratio "
        f"**{found['ratio']:.3f}**; {found['tokens']:,} tokens, loss apart {found['loss_apart']:.0e}, "
        f"hits apart {found['hits_apart']:.0f}"
    )


def built(case: str, titles: str, cache: str) -> tuple[Any, Any, Trainer]:
    """The module, its data and a trainer, after one validation, which builds the network and warms up."""
    seed_everything(1337, verbose=False)
    config, network_changes, data_changes = CASES[case]
    parts = yaml.safe_load((Path("configs") / f"{config}.yaml").read_text())
    model, data = parts["model"]["init_args"], parts["data"]["init_args"] | data_changes | {"cache_dir": cache}
    if case == "headlines":
        data["source"] = titles
    model_class, data_class = (
        _class(parts["model"]["class_path"]),
        _class(data.pop("class_path", parts["data"]["class_path"])),
    )
    network = model_class.config_class(**model.pop("config") | network_changes)
    module = model_class(network, OptimizerConfig(**model.pop("optimizer")), **model)
    datamodule = data_class(**data)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", **quiet)  # type: ignore[arg-type]
    trainer.validate(module, datamodule, verbose=False)
    module.net.prepare(data_of(trainer))  # counts of n-grams
    return module, datamodule, trainer


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def measured(module: Any, data: Any, trainer: Trainer, rounds: int) -> dict[str, Any]:
    """Seconds of both ways, the median ratio over rounds, and how far their figures are apart."""
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        results = trainer.validate(module, data, verbose=False)
        ours.append(time.process_time() - start)
        start = time.process_time()
        sums = plain_loop(module, data)
        plain.append(time.process_time() - start)
    metrics = {name: value for result in results for name, value in result.items()}
    tokens = {split: int(scored) for split, (*_, scored) in sums.items()}
    hits = {f"{split}/top{k}": sums[split][i] for split in sums for i, k in ((1, 1), (2, 5))}
    return {
        "cpu_seconds": round(min(ours), 2),
        "plain_cpu_seconds": round(min(plain), 2),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, plain, strict=True)), 3),
        "tokens": sum(tokens.values()),
        "loss_apart": max(abs(metrics[f"{split}/loss"] / (sums[split][0] / tokens[split]) - 1) for split in sums),
        "hits_apart": sum(abs(round(metrics[name] * tokens[name.split("/")[0]]) - n) for name, n in hits.items()),
    }


@torch.no_grad()
def plain_loop(module: Any, data: Any) -> dict[str, list[float]]:
    """Of each split the sum of nats, the targets that are the first choice, those among the first five, and all."""
    net, sums = module.net.eval(), {}
    for split, loader in zip(("val", "train_eval"), data.val_dataloader(), strict=False):
        sums[split] = torch.zeros(4, dtype=torch.float64)
        for batch in loader:
            logits, targets = net.head(net.hidden_of_batch(batch)), batch["targets"]
            scored = targets != IGNORE_INDEX
            nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
            hits = (logits.topk(5).indices == targets[..., None]) & scored[..., None]
            sums[split] += torch.stack([nats, hits[..., 0].sum(), hits.sum(), scored.sum()])
    return {split: total.tolist() for split, total in sums.items()}


if __name__ == "__main__":
    main()
