"""A disk that is full, closed or gone at each kind of write and read: one sentence, and nothing saved is lost."""

import errno
import io
import os
import random
import resource
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.harness import REFUSED, RIGHT, Done, Trial, WrongError, is_sentence, refused, typed
from benchmarks.faults.kills import Base, compared, make_base
from benchmarks.faults.points import Event, once, refuse_from
from benchmarks.faults.tiny import Setup, newest

CODES = {"full": errno.ENOSPC, "read-only": errno.EROFS, "closed": errno.EACCES, "broken": errno.EIO}
#: Limits of a file's size: each kind of file is longer than some, and a sentence shorter than all.
LIMITS = (300, 1000, 4000, 20_000, 60_000)


def trials(root: Path, quick: bool, rng: random.Random) -> Iterator[Trial]:
    """Each kind of write, and each kind of file that is read."""
    setups = [Setup(kept=True), Setup(rows="packed", optimizer="muon", epochs=True), Setup(workers=1, accumulation=2)]
    bases = []
    for number, setup in enumerate(setups[:1] if quick else setups):
        (folder := root / f"disk{number}").mkdir(parents=True)
        bases.append(make_base(setup, folder))
    each = 1 if quick else 3
    for base in bases:
        for event, numbers in sorted(_writes(base).items()):
            for number in _some(numbers, each, rng):
                code = rng.choice(sorted(CODES))
                act = partial(_refused_write, base, number, event, CODES[code])
                yield Trial(f"disk: {code}", f"{event} (event {number}): {base.setup.name}", act)
        for limit in LIMITS:
            yield Trial("disk: file size limit", f"{limit} bytes: {base.setup.name}", partial(_limited, base, limit))
        for number in sorted(rng.sample(range(len(base.events)), 6 if quick else 12)):
            for how in rng.sample(sorted(VANISH), 1 if quick else 2):
                name = f"{how} at {base.events[number]} (event {number}): {base.setup.name}"
                yield Trial("disk: vanishing folders", name, partial(_vanishing, base, number, how))
    for what in READ:
        for code in ("closed", "broken"):
            yield Trial("disk: unreadable", f"{what}, {code}", partial(_unreadable, bases[0], what, CODES[code]))


def _writes(base: Base) -> dict[Event, list[int]]:
    found: dict[Event, list[int]] = defaultdict(list)
    for number, event in enumerate(base.events):
        if event.when != "after" and event.operation != "unlink":
            found[event].append(number)
    return found


def _some(numbers: list[int], most: int, rng: random.Random) -> list[int]:
    """Always the first, when nothing of the kind is there yet."""
    return sorted({numbers[0], *rng.sample(numbers, min(most, len(numbers)))})[:most]


def _whole() -> None:
    """Every checkpoint that has its name is whole.

    Raises:
        WrongError: one is not.
    """
    from lit_gpt.integrity import is_intact

    if torn := [str(path) for path in Path("logs").glob("**/*.ckpt") if not is_intact(path)]:
        raise WrongError(f"not whole: {', '.join(torn)}")


def _goes_on(base: Base, done: Done, *parts: str) -> str:
    """The outcome where the run was refused, or was not and is right; afterwards it ends like the straight one.

    Raises:
        WrongError: no sentence, a damaged checkpoint, or another end.
    """
    outcome = refused(done, *parts) if done.status else RIGHT
    _whole()
    if outcome == REFUSED:
        again = typed(base.arguments)
        if again.status:
            raise WrongError(f"with room again, the run ends with {again.status}: {again.err[-300:]}")
    compared(base.folder)
    return outcome


def _refused_write(base: Base, number: int, event: Event, code: int) -> str:
    done = typed(base.arguments, refuse_from(number, code))
    tokens = "tokens in cache" in done.err  # whose size is known when they are all there, not before
    parts = [] if done.status == 0 else ["disk is full" if tokens else os.strerror(code)]
    if done.status and not any(place in done.err for place in ("logs/run", "cache")):
        raise WrongError(f"the sentence has no path: {done.err[-300:]}")
    if code == errno.ENOSPC and event.target.endswith(".ckpt") and event.operation in ("write", "fsync"):
        parts.append("it needs")
    return _goes_on(base, done, *parts)


def _limited(base: Base, limit: int) -> str:
    def first() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return _goes_on(base, typed(base.arguments, first))


# ---- folders that vanish


def _gone(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _moved(folder: Path) -> None:
    if folder.exists():
        folder.rename(folder.with_name(f"moved {folder.name}"))


def _a_file(folder: Path) -> None:
    _gone(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("no folder")


RUN = Path("logs/run/version_0")
VANISH: dict[str, Callable[[], None]] = {
    "run deleted": lambda: _gone(RUN),
    "run moved": lambda: _moved(RUN),
    "checkpoints deleted": lambda: _gone(RUN / "checkpoints"),
    "logs deleted": lambda: _gone(Path("logs")),
    "a file in the place of the run": lambda: _a_file(RUN),
    "cache deleted": lambda: _gone(Path("cache")),
}


def _vanishing(base: Base, number: int, how: str) -> str:
    done = typed(base.arguments, once(number, VANISH[how]))
    if done.status and not is_sentence(done):
        raise WrongError(f"no sentence: status {done.status}, {done.err[-300:]}")
    for path in (RUN, RUN.parent):
        if path.is_file():
            path.unlink()
    if done.status:
        again = typed(base.arguments)
        if again.status:
            raise WrongError(f"then the run ends with {again.status}: {again.err[-300:]}")
    if not done.status and "deleted" in how and number > _last_save(base):
        return RIGHT  # all that was saved is gone, as was wished
    _same_end(base)
    return REFUSED if done.status else RIGHT


def _last_save(base: Base) -> int:
    return max(number for number, event in enumerate(base.events) if event == ("replace", "last.ckpt", "before"))


def _same_end(base: Base) -> None:
    """The last checkpoint is the straight run's; earlier files and rows are where the folder went.

    Raises:
        WrongError: it is not.
    """
    from benchmarks.faults.tiny import same, state

    paths = [run / "checkpoints" / "last.ckpt" for run in (base.folder, newest(Path()))]
    if not paths[1].is_file():
        raise WrongError("no last.ckpt")
    if not same(*map(state, paths)):
        raise WrongError("the last checkpoint differs from the straight run's")


# ---- files that cannot be read


def _closed(part: str, code: int) -> Callable[[], None]:
    """Opening a path that holds ``part`` is refused, however it is opened (root may read everything)."""
    import builtins

    def first() -> None:
        for module, name in ((io, "open"), (builtins, "open"), (os, "open")):
            real = getattr(module, name)

            def call(path: Any, *args: Any, real: Any = real, **kwargs: Any) -> Any:
                if not isinstance(path, int) and part in os.fsdecode(path):
                    raise OSError(code, os.strerror(code), os.fsdecode(path))
                return real(path, *args, **kwargs)

            setattr(module, name, call)

    return first


#: What is read, by a part of its path, and the verb that reads it.
READ = {
    "the text": ("text.txt", "fit"),
    "a config file": ("mine.yaml", "fit --config=mine.yaml"),
    "a checkpoint of generate": ("best.ckpt", "generate --ckpt_path=best.ckpt"),
    "a checkpoint of validate": ("best.ckpt", "validate --ckpt_path=best.ckpt --trainer.accelerator=cpu"),
    "a checkpoint of export": ("best.ckpt", "export --ckpt_path=best.ckpt --out=out"),
    "a checkpoint to start from": ("best.ckpt", "fit --model.init_from=best.ckpt"),
    "a checkpoint to go on from": ("best.ckpt", "fit --ckpt_path=best.ckpt"),
    "a tokenizer": ("t.json", "fit --data=BPEDataModule --data.tokenizer=t.json"),
    "a tokenizer to judge": ("t.json", "tokenizer eval --tokenizer=t.json --source={text}"),
    "a text of the tokenizer verb": ("text.txt", "tokenizer train --out=new.json --source={text}"),
    "a text of predict": ("other.txt", "predict --ckpt_path=best.ckpt --data.predict_source=other.txt"),
}


def _unreadable(base: Base, what: str, code: int) -> str:
    from datamodules.tokenizers import ByteTokenizer, save_tokenizer

    part, command = READ[what]
    text = next(a for a in base.arguments if a.startswith("--data.source=")).partition("=")[2]
    shutil.copy(base.folder / "checkpoints" / "best.ckpt", "best.ckpt")
    shutil.copy(text, "other.txt")
    Path("mine.yaml").write_text("name: run\n")
    save_tokenizer(ByteTokenizer(eos=True), "t.json")
    arguments = command.format(text=text).split()
    rest = [
        a for a in base.arguments[1:] if a != "--resume=auto" and not (a.startswith("--data=") and "--data=" in command)
    ]
    if arguments[0] == "fit":
        arguments = ["fit", *rest, *arguments[1:]]
    return refused(typed(arguments, _closed(part, code)), part, os.strerror(code))
