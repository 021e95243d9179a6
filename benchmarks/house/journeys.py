"""How many of our files a person has to follow: four journeys traced call by call, and what a change touches.

    python -m benchmarks.house.journeys
    PYTHONPATH=../before python benchmarks/house/journeys.py --tree ../before     # the same of another commit

A journey counts the files of lit_gpt and datamodules in which a Python function ran. What a change touches is counted
on the newest example of its kind: the files of lit_gpt and datamodules that name it. A count is evidence, not a goal.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: What a change of each kind looks like: an example that is there, and a pattern that its files hold.
EXAMPLES = {
    "an option of the attention": ("attention_gate", r"\battention_gate\b"),
    "a network": ("the bigrams", r"\b(LitBigram|BigramConfig|NeuralBigram)\b"),
    "a loss": ("R-Drop", r"\b(r_drop|r_drop_nats|r_drop_sum)\b"),
    "a method for small corpora": ("n-gram embeddings", r"\b(ngrams|NgramEmbedding|ngram_rows)\b"),
    "a datamodule": ("HeadlinesDataModule", r"\bHeadlinesDataModule\b"),
    "a metric of one datamodule": ("the challenge's loss", r"\bchallenge_loss\b"),
}


@contextlib.contextmanager
def traced(tree: Path, files: set[str], stop: str | None = None) -> Iterator[None]:
    """Collect the files below ``tree`` in which functions run, until a class of the name ``stop`` is made."""

    def note(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith((f"{tree}/lit_gpt/", f"{tree}/datamodules/")):
            if stop and frame.f_code.co_name == "__init__" and type(frame.f_locals.get("self")).__name__ == stop:
                sys.setprofile(None)
                return
            files.add(str(Path(name).relative_to(tree)))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def text_to_batch(tree: Path, folder: Path) -> set[str]:
    """A text file becomes the first batch."""
    from datamodules import CharDataModule

    files: set[str] = set()
    with traced(tree, files):
        data = CharDataModule(str(folder / "text.txt"), block_size=8, tokens_per_step=64, cache_dir=str(folder))
        data.prepare_data()
        data.setup()
        next(iter(data.train_dataloader()))
    return files


def batch_to_step(tree: Path, folder: Path) -> set[str]:
    """A batch becomes an optimizer step of Muon, through a plain Trainer."""
    from lightning.pytorch import Callback

    files: set[str] = set()

    class Traced(Callback):
        """Traces one step."""

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                self.tracing = traced(tree, files)
                self.tracing.__enter__()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                self.tracing.__exit__(None, None, None)

    trained(folder, [Traced()])
    return files


def save_to_text(tree: Path, folder: Path) -> set[str]:
    """A trained module becomes a file, and the file becomes text."""
    import lit_gpt

    files: set[str] = set()
    trainer = trained(folder, [])
    with traced(tree, files):
        trainer.save_checkpoint(folder / "saved.ckpt")
        lit_gpt.load(folder / "saved.ckpt").generate("the ", max_new_tokens=3, seed=1)
    return files


def flag_to_object(tree: Path, folder: Path) -> set[str]:
    """A flag of the command line becomes the argument of the module."""
    from lit_gpt.__main__ import main

    files: set[str] = set()
    flags = ["--data.source", str(folder / "text.txt"), "--model.config.n_layer", "1", "--model.config.n_head", "1"]
    flags += ["--model.config.n_embd", "8", "--model.config.block_size", "8", "--trainer.max_steps", "1"]
    sys.argv = ["lit_gpt", "fit", *flags, "--logs_dir", str(folder / "logs"), "--samples.max_new_tokens", "0"]
    with traced(tree, files, stop="LitGPT"):
        main()
    return files


def trained(folder: Path, callbacks: list[Any]) -> Any:
    """A Trainer after two steps of a tiny GPT."""
    from lightning.pytorch import Trainer

    from datamodules import CharDataModule
    from lit_gpt import GPTConfig, LitGPT, OptimizerConfig

    config = GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=8)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "enable_model_summary": False, "limit_val_batches": 0, **quiet}
    trainer = Trainer(max_steps=2, callbacks=callbacks, **options)
    data = CharDataModule(str(folder / "text.txt"), tokens_per_step=64, cache_dir=str(folder))
    module = LitGPT(config, OptimizerConfig(kind="muon", schedule="constant"))
    trainer.fit(module, datamodule=data)
    return trainer


JOURNEYS: dict[str, Callable[[Path, Path], set[str]]] = {
    "text file to batch": text_to_batch,
    "batch to optimizer step": batch_to_step,
    "checkpoint saved to text generated": save_to_text,
    "flag to its object": flag_to_object,
}


def touched(tree: Path, pattern: str) -> list[str]:
    """The source files that hold the pattern."""
    sources = [*tree.glob("lit_gpt/**/*.py"), *tree.glob("datamodules/**/*.py")]
    return sorted(str(path.relative_to(tree)) for path in sources if re.search(pattern, path.read_text("utf-8")))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--names", action="store_true", help="print the files too")
    options = parser.parse_args()
    tree = options.tree.resolve()
    for name, journey in JOURNEYS.items():
        for _ in range(2):  # the first imports, and imports run code too
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "text.txt").write_text("the cat sat on the mat and the dog ate it. " * 40)
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    files = journey(tree, Path(folder))
        show(name, files, "", options.names)
    for kind, (example, pattern) in EXAMPLES.items():
        show(kind, set(touched(tree, pattern)), f" name {example}", options.names)


def show(what: str, files: set[str], more: str, names: bool) -> None:
    """A line, and the files below it when they are wanted."""
    print("\n    ".join([f"{what:<36} {len(files):>3} files{more}", *(sorted(files) if names else [])]))


if __name__ == "__main__":
    main()
