"""Mistakes that people make on the command line, with the answer that each gets: writes docs/mistakes.md.

python -m benchmarks.mistakes
"""

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from lit_gpt.cli import early
from lit_gpt.cli.arguments import with_packaged_configs

PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
#: What is typed, and what was meant: the answer must name its options, and it must be accepted.
MISTAKES = {
    "fit --lr 0.1": "--model.optimizer.lr 0.1",
    "fit --learning_rate 3e-4": "--model.optimizer.lr 3e-4",
    "fit --model.lr 0.1": "--model.optimizer.lr 0.1",
    "fit --weight_decay 0.1": "--model.optimizer.weight_decay 0.1",
    "fit --warmup_steps 100": "--model.optimizer.warmup 100",
    "fit --optimizer muon": "--model.optimizer.kind muon",
    "fit --grad_clip 1.0": "--trainer.gradient_clip_val 1.0",
    "fit --seed 3": "--seed_everything 3",
    "fit --epochs 3": "--trainer.max_epochs 3",
    "fit --steps 1000": "--trainer.max_steps 1000",
    "fit --max_steps 1000": "--trainer.max_steps 1000",
    "fit --max_iters 1000": "--trainer.max_steps 1000",
    "fit --max-steps 1000": "--trainer.max_steps 1000",
    "fit --trainer.max_stps 1000": "--trainer.max_steps 1000",
    "fit --trainer.max_steps ten": "",
    "fit --batch_size 4": "--data.micro_batch_size 4",
    "fit --gradient_accumulation_steps 4": "--data.tokens_per_step 8192 --data.micro_batch_size 4",
    "fit --n_layer 6": "--model.config.n_layer 6",
    "fit --num_layers 6": "--model.config.n_layer 6",
    "fit --model.config.n_layr 6": "--model.config.n_layer 6",
    "fit --model.config.n_layer six": "",
    "fit --hidden_size 256": "--model.config.n_embd 256",
    "fit --num_attention_heads 8": "--model.config.n_head 8",
    "fit --dropout 0.1": "--model.config.dropout 0.1",
    "fit --block_size 128": "--model.config.block_size 128",
    "fit --context_length 128": "--model.config.block_size 128",
    "fit --preset gpt2-small": "--preset gpt2",
    "fit --model gpt2": "--preset gpt2",
    "fit --model llama": "--preset llama",
    "fit --model LitGTP": "--model LitGPT",
    "fit --model.r_drop 1": "--model LitExtendedGPT --model.r_drop 1",
    "fit --model.config.members 4": "--model LitExtendedGPT --model.config.members 4",
    "fit --compile": "--model.compile true",
    "fit --data my.txt": "--data.source my.txt",
    "fit --dataset my.txt": "--data.source my.txt",
    "fit my.txt": "--data.source my.txt",
    "fit --data shakespeare": "--data.source tiny_shakespeare",
    "fit --data CharData": "--data CharDataModule",
    "fit --tokenizer gpt2": "--data BPEDataModule --data.tokenizer gpt2",
    "fit --data.documents line": "--data BPEDataModule --data.documents line",
    "fit --data HeadlinesDataModule --data.vocab_sizex 512": "--data.vocab_size 512",
    "fit --config configs/headlines_cpu.yaml --data.vocab_sizex 512": "--data.vocab_size 512",
    "fit --config configs/chars.yaml": "--config configs/char.yaml",
    "fit configs/char.yaml": "--config configs/char.yaml",
    "fit n_layer=6": "--model.config.n_layer 6",
    "fit --device cuda": "--trainer.accelerator cuda",
    "fit --gpus 2": "--trainer.devices 2",
    "fit --bf16": "--trainer.precision bf16-mixed",
    "fit --fp16": "--trainer.precision 16-mixed",
    "fit --precision bf16-mixed": "--trainer.precision bf16-mixed",
    "fit --trainer.precision fp16": "--trainer.precision 16-mixed",
    "fit --trainer.strategy fsdp": "--trainer.strategy fsdp2",
    "fit --trainer.strategy deepspeed": "--trainer.strategy fsdp2",
    "fit --trainer.strategy deepspeed_stage_2": "--trainer.strategy fsdp2",
    "fit --trainer.strategy dpp": "--trainer.strategy ddp",
    "fit --trainer.strategy ddp_spawn": "--trainer.strategy ddp",
    "fit --fsdp true": "--trainer.strategy fsdp2",
    "fit --trainer.logger CSVLogger": "--trainer.logger CSVLogger --trainer.logger.save_dir logs",
    "fit --wandb": "--trainer.logger WandbLogger",
    "fit --output_dir runs": "--logs_dir runs",
    "fit --out_dir runs": "--logs_dir runs",
    "fit --eval_interval 100": "--trainer.val_check_interval 100",
    "fit --save_steps 100": "--checkpoint.every_n_steps 100",
    "fit --patience 3": "--early_stopping 3",
    "fit --temperature 0.5": "--samples.temperature 0.5",
    "fit --resume logs/char/version_0": "--ckpt_path logs/char/version_0",
    "fit --checkpoint logs/char/version_0": "--ckpt_path logs/char/version_0",
    "fit --ckpt last.ckpt": "--ckpt_path last.ckpt",
    "fit --resume_from_checkpoint last.ckpt": "--ckpt_path last.ckpt",
    "fit --lr_decay_iters 1000": "--trainer.max_steps 1000",
    "fit --data.path my.txt": "--data.source my.txt",
    "fit --dtype bfloat16": "--trainer.precision bf16-mixed",
    "fit --init_from resume": "--resume auto",
    "fit --resume": "",
    "fit -model.config.n_layer 6": "--model.config.n_layer 6",
    "fit --trainer.max_steps -5": "",
    "fit --samples.every_n_steps 100": "--samples.every_n_validations 1",
    "fit --config configs": "",
    "fit --quantum 3": "",
    "generate --out_dir logs/char/version_0": "--ckpt_path logs/char/version_0",
    "generate --checkpoint best.ckpt": "--ckpt_path best.ckpt",
    "generate --ckpt_path best.ckpt --temp 0.5": "--temperature 0.5",
    "generate --ckpt_path best.ckpt --max_length 100": "--max_new_tokens 100",
    "generate --ckpt_path best.ckpt --start ROMEO": "--prompt ROMEO",
    "generate --ckpt_path best.ckpt --greedy": "--temperature 0",
    "generate --ckpt_path best.ckpt --do_sample false": "--temperature 0",
    "generate --ckpt_path best.ckpt --num_return_sequences 3": "--num_samples 3",
    "predict --ckpt_path best.ckpt --output out.jsonl": "--predictions.path out.jsonl",
    "tokenizer train --source my.txt --output my.json": "--out my.json",
    "export --ckpt_path best.ckpt --output_dir model": "--out model",
}
TEXT = """# Mistakes and their answers

What people type who come from nanoGPT, Hugging Face or Lightning, and the answer, after `python -m lit_gpt`.
`python -m benchmarks.mistakes` writes this page, and a test checks that each hint is accepted. An option that does not
exist is refused before torch is imported, in 0.2 s.

"""


@cache
def answer(line: str) -> str | None:
    """The refusal of a command line. None: it is accepted, as far as that can be said without running it."""
    verb, *arguments = shlex.split(line)
    try:
        early.check(verb, arguments)
        if verb in ("fit", "predict"):
            _parse(verb, arguments)
    except UserError as error:
        return str(error)
    return None


def _parse(verb: str, arguments: list[str]) -> None:
    from lit_gpt.cli.values import check_values, preset

    arguments = with_packaged_configs(arguments)
    preset(arguments)
    check_values(verb, parser(verb)._parsed(arguments)[verb])


@cache
def parser(verb: str) -> Any:
    """The command line of a verb that has been built, and not been run."""
    from lit_gpt.cli.lightning_cli import LitCLI

    class Built(LitCLI):
        """Stops before the arguments are parsed."""

        def parse_arguments(self, *_: Any) -> None:
            raise InterruptedError

    cli = Built.__new__(Built)
    try:
        cli.__init__(verb, [])  # type: ignore[misc]
    except InterruptedError:
        return cli


def page() -> str:
    """The text of docs/mistakes.md."""
    rows = (f"    {line}\n        {answer(line)}\n" for line in MISTAKES)
    return TEXT + "".join(rows)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{len(MISTAKES)} mistakes: {PAGE}")


if __name__ == "__main__":
    main()
