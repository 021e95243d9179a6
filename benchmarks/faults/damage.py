"""Files with a flipped bit, a block of zeros or a missing end: the right result, or it is said what is damaged."""

import hashlib
import io
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.harness import OLDER, REBUILT, REFUSED, RIGHT, Finding, Trial, WrongError, refused, typed
from benchmarks.faults.kills import Base, compared, make_base
from benchmarks.faults.points import kill_at
from benchmarks.faults.tiny import Setup, newest, same, write_texts
from datamodules.errors import UserError

BLOCK = 4096
#: Cheap trials that share a process.
TOGETHER = 25


class Damage(NamedTuple):
    """What is done to a file: ``flip`` bit ``how`` of byte ``place``, ``zeros`` from there on, or a ``cut`` there."""

    what: str
    place: int
    how: int = 0

    def of(self, content: bytes) -> bytes:
        """The damaged content."""
        if self.what == "cut":
            return content[: self.place]
        if self.what == "flip":
            return content[: self.place] + bytes([content[self.place] ^ 1 << self.how]) + content[self.place + 1 :]
        size = min(BLOCK, len(content) - self.place)
        return content[: self.place] + bytes(size) + content[self.place + size :]


def damages(size: int, flips: int, cuts: int, rng: random.Random) -> list[Damage]:
    """So many flipped bits and cuts at random places, and each block of zeros (of long files as many as cuts)."""
    found = [Damage("flip", rng.randrange(size), rng.randrange(8)) for _ in range(flips)]
    blocks = range(0, size, BLOCK)
    found += [Damage("zeros", place) for place in rng.sample(blocks, min(len(blocks), cuts))]
    found += [Damage("cut", rng.randrange(size)) for _ in range(cuts - 1)]
    return [*found, Damage("cut", 0)]


def replace(path: Path, content: bytes) -> None:
    """Put other content there, in a file of its own: names of the same file stay whole."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def trials(root: Path, quick: bool, rng: random.Random) -> Iterator[Trial]:
    """Every kind of file, each followed by what reads it."""
    flips, cuts = (12, 4) if quick else (300, 50)
    (root / "damage").mkdir(parents=True)
    base = make_base(Setup(), root / "damage")
    run = _unfinished(base, root / "damage" / "unfinished")
    best = run / "checkpoints" / "best.ckpt"
    yield from _together("best.ckpt, then generate", best, _Generate(best), flips, cuts, rng)
    last = run / "checkpoints" / "last.ckpt"
    for name, act, every in (("last.ckpt, then --resume", _resumed, 1), ("best.ckpt, then --resume", _resumed, 8)):
        path = run / "checkpoints" / name.split(",")[0]
        for damage in damages(path.stat().st_size, flips // every, max(2, cuts // every), rng):
            yield Trial(f"damage: {name}", str(damage), partial(act, base, run, path.name, damage))
    for damage in damages(last.stat().st_size, flips // 16, max(2, cuts // 16), rng):
        yield Trial("damage: last.ckpt, then --ckpt_path", str(damage), partial(_given, base, run, damage))
    yield from _stores(root, flips, cuts, rng)
    yield from _tokenizers(root / "damage", flips, cuts, rng)


def _together(
    kind: str, path: Path, use: "Callable[[Path], str]", flips: int, cuts: int, rng: random.Random
) -> Iterator[Trial]:
    """Cheap trials with damaged copies of a file."""
    content = path.read_bytes()
    found = damages(len(content), flips, cuts, rng)
    for start in range(0, len(found), TOGETHER):
        act = partial(_each, f"damage: {kind}", path.name, content, found[start : start + TOGETHER], use)
        yield Trial(f"damage: {kind}", f"{path.name} from {start}", act)


def _each(kind: str, name: str, content: bytes, found: list[Damage], use: "Callable[[Path], str]") -> list[Finding]:
    findings = []
    for number, damage in enumerate(found):
        (folder := Path(str(number))).mkdir()
        (folder / name).write_bytes(damage.of(content))
        findings.append(Finding(kind, f"{name} {damage}", _outcome(use, folder / name)))
    return findings


def _outcome(use: "Callable[[Path], str]", path: Path) -> str:
    try:
        return use(path)
    except UserError as error:
        lines = str(error).count("\n")
        return REFUSED if path.name in str(error) and not lines else f"a sentence without the file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


# ---- checkpoints


class _Generate:
    """Compares the logits, and the text that the tokens mean, with those of the whole file."""

    def __init__(self, whole: Path) -> None:
        self.right = self._logits(whole)

    def __call__(self, path: Path) -> str:
        return RIGHT if same(self._logits(path), self.right) else "SILENTLY WRONG"

    def _logits(self, path: Path) -> Any:
        import torch

        from lit_gpt import checkpoint

        model: Any = checkpoint.load(path)
        ids = list(range(model.tokenizer.vocab_size))
        with torch.no_grad():
            logits = model.net(torch.tensor([ids[:32]]))
        return logits, [model.tokenizer.decode([i]) for i in ids], model.tokenizer.encode("a town")


def _unfinished(base: Base, folder: Path) -> Path:
    """The same run, killed when its last save was about to take the place of the one before: last.ckpt is of step 9,
    best.ckpt of step 8.
    """
    (folder / "work").mkdir(parents=True)
    back = Path.cwd()
    os.chdir(folder / "work")
    saves = [
        n for n, e in enumerate(base.events) if (e.operation, e.target, e.when) == ("replace", "last.ckpt", "before")
    ]
    typed(base.arguments, kill_at(saves[-1]))
    os.chdir(back)
    for path in (run := newest(folder / "work")).glob("**/.*"):
        path.unlink()
    return run


def _copied(run: Path, name: str, damage: Damage) -> None:
    """The run in the current folder, one of its files damaged."""
    shutil.copytree(run.parents[2] / "cache", "cache")
    shutil.copytree(run.parents[1], "logs")
    path = newest(Path()) / "checkpoints" / name
    replace(path, damage.of(path.read_bytes()))


def _resumed(base: Base, run: Path, name: str, damage: Damage) -> str:
    _copied(run, name, damage)
    done = typed(base.arguments)
    if done.status:
        raise WrongError(f"status {done.status}: {done.err[-300:]}")
    if len(list(Path("logs/run").iterdir())) > 1:
        raise WrongError("began again, though a whole checkpoint was there")
    compared(base.folder)
    return OLDER if "damaged or gone: resuming from step" in done.out else RIGHT


def _given(base: Base, run: Path, damage: Damage) -> str:
    """Where the damaged file itself is asked for."""
    _copied(run, "last.ckpt", damage)
    arguments = [a for a in base.arguments if not a.startswith("--resume")]
    done = typed([*arguments, "--ckpt_path=logs/run/version_0"])
    return compared(base.folder) if done.status == 0 else refused(done, "last.ckpt", "best.ckpt")


# ---- token stores and tokenizers


def _stores(root: Path, flips: int, cuts: int, rng: random.Random) -> Iterator[Trial]:
    text, titles = write_texts(root / "damage")
    modules = {
        "windows": f"CharDataModule {text}",
        "titles": f"HeadlinesDataModule {titles}",
        "subwords": f"BPEDataModule {text}",
    }
    for how, spec in modules.items():
        cache = root / "damage" / how
        right = _content(spec, cache)
        files = [path for path in sorted(cache.rglob("*")) if path.is_file() and path.suffix != ".lock"]
        share = len(modules) * len(files)
        for path in files:
            found = damages(path.stat().st_size, max(1, flips // share), max(2, cuts // share), rng)
            act = partial(_store_each, spec, cache, path.relative_to(cache), found, right)
            yield Trial("damage: token stores", f"{how} {path.name}", act, 300)


def _content(spec: str, cache: Path) -> str:
    """A hash of all that training would be given."""
    import datamodules

    name, source = spec.split()
    options = {"vocab_size": 300} if name == "BPEDataModule" else {}
    module = getattr(datamodules, name)(source, cache_dir=str(cache), block_size=32, **options)
    module.prepare_data()
    module.setup("fit")
    seen = hashlib.sha256(repr(module.tokenizer.to_dict()).encode())
    for split, store in sorted(module.stores.items()):
        seen.update(f"{split} {store.counts}".encode() + store.tokens.tobytes() + store.starts.tobytes())
    return seen.hexdigest()


def _store_each(spec: str, cache: Path, name: Path, found: list[Damage], right: str) -> list[Finding]:
    findings = []
    for number, damage in enumerate(found):
        shutil.copytree(cache, own := Path(str(number)))
        replace(own / name, damage.of((cache / name).read_bytes()))
        with redirect_stderr(io.StringIO()) as said:
            try:
                outcome = RIGHT if _content(spec, own) == right else "SILENTLY WRONG"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"[:300]
        print(said.getvalue(), file=sys.stderr)
        rebuilt = outcome == RIGHT and "preparing them anew" in said.getvalue()
        findings.append(Finding("damage: token stores", f"{name} {damage}", REBUILT if rebuilt else outcome))
    return findings


def _tokenizers(folder: Path, flips: int, cuts: int, rng: random.Random) -> Iterator[Trial]:
    from datamodules.tokenizers import CharTokenizer, save_tokenizer, train_tokenizer

    text = (folder / "titles.txt").read_text()
    made: dict[str, Any] = {"char": CharTokenizer.from_texts([text])}
    made |= {kind: train_tokenizer(kind, [text], 300) for kind in ("bpe", "unigram")}
    for kind, tokenizer in made.items():
        save_tokenizer(tokenizer, folder / f"{kind}.json")
        use = partial(_same_tokenizer, tokenizer.to_dict())
        yield from _together("tokenizer files", folder / f"{kind}.json", use, flips // 3, max(2, cuts // 3), rng)


def _same_tokenizer(right: dict[str, Any], path: Path) -> str:
    from datamodules.tokenizers import load_tokenizer

    return RIGHT if load_tokenizer(path).to_dict() == right else "SILENTLY WRONG"
