"""``python -m lit_gpt VERB``: dispatch only. Nothing heavy is imported before it is needed, so ``--help`` is
instant.
"""

import os
import re
import sys
import threading
import time
from typing import Any, NoReturn

from lit_gpt.allocator import keep_freed_memory
from lit_gpt.cli import lost_processes

TRAINER_VERBS = {
    "fit": "train a model",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split",
    "predict": "write each token's nats, rank and probability as JSON lines",
}
#: How long the other processes of a run leave it to the first to say why none can begin.
SECONDS_TO_BE_SAID = 10.0
#: How the errors of torch begin that tell of another process: it has gone, or it never came.
LOST_PEER = r"(gloo|NCCL).*(peer|remote|timed? ?out)|failed to recv|client socket has timed out|DistStoreError"
#: The process that has started this one.
STARTED_BY = os.getppid()
OUR_VERBS = {
    "generate": "write text with a checkpoint",
    "fill-mask": "name the likeliest tokens for each [MASK] of a text",
    "doctor": "name what is wrong with a training set-up, in a minute",
    "inspect": "show how surprised a model is by each token of a text",
    "report": "compare runs on one page, or in a table",
    "sweep": "print the commands of all combinations of some settings",
    "data": "show the batches and facts of a configuration's data",
    "plot": "draw the curves of runs as a PNG",
    "tokenizer": "train a tokenizer to a file, judge one on a text, or export it",
    "import": "turn a Hugging Face GPT-2, Llama or BERT into a checkpoint",
    "export": "turn a checkpoint into a Hugging Face folder or plain safetensors",
}


def usage() -> str:
    """The text of ``--help``."""
    verbs = "\n".join(f"  {verb:<10} {what}" for verb, what in {**TRAINER_VERBS, **OUR_VERBS}.items())
    return (
        "usage: python -m lit_gpt VERB [options]\n\nTrain GPTs from scratch on PyTorch Lightning.\n\nverbs:\n"
        f"{verbs}\n\nStart here:\n  python -m lit_gpt fit --config configs/char.yaml\n"
        "  python -m lit_gpt VERB --help        the options of a verb\n  python -m lit_gpt --version\n"
    )


def main() -> None:
    """Run the verb of the command line; a wrong input is one sentence on stderr and exit status 2."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return
    if arguments[0] == "--version":
        from lit_gpt.version import __version__

        print(f"lit-gpt {__version__}")
        return
    _guarded(arguments)


def _guarded(arguments: list[str]) -> None:
    from datamodules.errors import UserError, is_refusal, refusal
    from lit_gpt.cli import late_imports

    lost_processes.watch_parent()
    # OpenMP's threads wait for each other by spinning, which takes the cores from whatever else runs on the machine. A
    # short spin, then sleep, is as fast as a long one where nothing else runs, and beside one busy process 1.3 times as
    # fast as OpenMP's own (docs/LOG.md, "a shorter spin"). Read when torch is loaded, so it is set here.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    keep_freed_memory()
    late_imports.install()
    threading.excepthook = _end_thread
    try:
        _dispatch(arguments[0], arguments[1:])
        sys.stdout.flush()  # here a full disk is one sentence
    except UserError as error:
        _say_and_exit(error)
    except RuntimeError as error:
        told = _lost_process(error)
        if told is None:
            raise
        _say_and_exit(UserError(told))
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as left:  # Lightning makes 1 of a Ctrl-C
        if isinstance(left.__context__, KeyboardInterrupt):
            sys.exit(128 + getattr(left.__context__, "number", 2))
        raise
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if not is_refusal(error):
            raise
        _forget_unwritten_output()
        _say_and_exit(refusal(error))


def _say_and_exit(error: ValueError) -> NoReturn:
    if os.environ.get("LIT_GPT_DEBUG") == "1":
        raise error
    if _is_said_elsewhere(getattr(error, "is_first", None)):
        sys.exit(2)
    print(f"lit_gpt: {error}", file=sys.stderr)
    sys.exit(2)


def _is_said_elsewhere(is_first: bool | None) -> bool:
    """Whether another process of the run says it. Waits until that one has had the time to.

    Args:
        is_first: Whether this is the first process of those that have met the same refusal. None: it is not known, so
            one process says it whose parent has started others: under torchrun, that ends all processes as soon as the
            first has failed.
    """
    if is_first or (is_first is None and os.environ.get("LOCAL_RANK", "0") == "0"):
        return False
    end = time.monotonic() + SECONDS_TO_BE_SAID
    while os.getppid() == STARTED_BY and time.monotonic() < end:
        time.sleep(0.1)
    return is_first is False or os.getppid() != STARTED_BY


def _forget_unwritten_output() -> None:
    """What a full disk refused of the output would be refused again at the exit, with a traceback and status 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_thread(args: Any) -> None:
    """A thread that writes logs ends silently on a full disk: the main thread meets the same error at its next
    write.
    """
    from datamodules.errors import is_refusal

    if not is_refusal(args.exc_value):
        threading.__excepthook__(args)


def _lost_process(error: RuntimeError) -> str | None:
    """What to say where another process of the run has gone; None for any other error."""
    worker = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is (killed by signal)|exited)", str(error))
    if worker:
        return (
            f"worker process {worker[1]} of the data loader {'was' if worker[2] else 'ended,'} "
            f"{worker[2] or 'perhaps killed'}, often for want of memory: try a smaller --data.num_workers, and go on "
            "with --resume auto."
        )
    if re.search(LOST_PEER, str(error), re.DOTALL | re.IGNORECASE):
        return lost_processes.LOST
    return None


def _dispatch(verb: str, rest: list[str]) -> None:
    if verb in TRAINER_VERBS or verb in OUR_VERBS:
        from lit_gpt.cli import early

        early.check(verb, rest)
    if verb in TRAINER_VERBS:
        from lit_gpt.cli.late_imports import collecting_later

        with collecting_later():
            from lit_gpt.cli.lightning_cli import run
    elif verb in OUR_VERBS:
        from lit_gpt.commands import run
    else:
        from lit_gpt.cli.suggest import unknown

        raise unknown("verb", verb, [*TRAINER_VERBS, *OUR_VERBS])
    run(verb, rest)


if __name__ == "__main__":
    main()
