"""Mutated configs, odd texts, odd numbers: each is accepted and gives what is right, or is refused in a sentence."""

import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.harness import REFUSED, RIGHT, Done, Finding, Trial, WrongError, is_sentence, typed
from benchmarks.faults.kills import Base, make_base
from benchmarks.faults.tiny import Setup
from datamodules.errors import UserError

CONFIGS = Path("configs").resolve()
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", "x", "null", -1, 0, 1, 0.5, 2**63, 1e300, float("nan"), float("inf"), [], [1], {}, {"a": 1}),
    *("1e3", "٣", "a\nb", "class_path", [[]], {"class_path": "os.system"}, "$HOME", "~", "/dev/null", "\0"),
)
ODD_NUMBERS = (
    *("0", "-1", "1", "nan", "inf", "-inf", "1e400", "1e-400", str(2**31), str(2**63), str(10**30), "0.5", "-0.0"),
    *("", " ", "x", "1_000", "0x10", "٣", "1e3", "null", "true", "[1]", "1;2", "--1", "1e", "½"),
)


def trials(root: Path, quick: bool, rng: random.Random) -> Iterator[Trial]:
    """Configs, texts, numbers."""
    (root / "inputs").mkdir(parents=True)
    base = make_base(Setup(), root / "inputs")
    configs = sorted(CONFIGS.rglob("*.yaml"))
    for number in range(40 if quick else 300):
        config = configs[number % len(configs)]
        mutation, content = mutated(yaml.safe_load(config.read_text()), rng)
        name = f"{config.relative_to(CONFIGS)}: {mutation}"
        yield Trial("inputs: mutated configs", name, partial(_config, config, content, mutation))
    for name, text in TEXTS.items():
        yield Trial("inputs: odd texts", name, partial(_text, name, text))
    options = _numeric_options()
    pairs = [(option, value) for option in options for value in ODD_NUMBERS]
    for option, value in rng.sample(pairs, 40 if quick else 300):
        yield Trial("inputs: odd numbers", f"--{option}={value}", partial(_number, base, option, value))


# ---- configs


class Mutation(tuple[str, str, Any]):
    """What was done (value, key, gone), where, and the new value or key."""


def mutated(config: Any, rng: random.Random) -> tuple[Mutation, Any]:
    """A copy of a config with one value or key changed, or one key left out."""
    content = copy.deepcopy(config)
    places = list(_places(content, ()))
    path, parent, key = rng.choice(places)
    how = rng.choice(("value", "value", "key", "gone"))
    where = ".".join(map(str, path))
    if how == "gone":
        del parent[key]
        return Mutation((how, where, None)), content
    if how == "key":
        wrong = rng.choice((f"{key}x", str(key).upper() + "_", "class_pathx", f" {key}", str(key)[:-1] + "~"))
        parent[wrong] = parent.pop(key)
        return Mutation((how, where, wrong)), content
    parent[key] = rng.choice(ODD_VALUES)
    return Mutation((how, where, parent[key])), content


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], dict[Any, Any], Any]]:
    if isinstance(value, dict):
        for key, inner in list(value.items()):
            yield (*path, key), value, key
            yield from _places(inner, (*path, key))


ON_CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto")


def _build_only() -> None:
    """Parse and build the objects, and no more."""
    from lit_gpt.cli.lightning_cli import LitCLI

    LitCLI._run_subcommand = lambda *_: None  # type: ignore[method-assign]


def _config(config: Path, content: Any, mutation: Mutation) -> str:
    Path("mutated.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))
    below = [f"--config={CONFIGS / 'char.yaml'}"] if config.parent.name == "debug" else []
    done = typed(["fit", *below, "--config=mutated.yaml", *ON_CPU], _build_only)
    outcome = _accepted_or_sentence(done)
    if outcome == RIGHT and mutation[0] == "key" and not _may_be_a_key(mutation[1]):
        raise WrongError(f"a key that nobody knows was accepted: {mutation[2]!r}")
    return outcome


def _may_be_a_key(where: str) -> bool:
    """Inside an open dict, any key is one."""
    return "group_lr" in where or "dict_kwargs" in where


def _accepted_or_sentence(done: Done) -> str:
    if done.status == 0:
        return RIGHT
    if not is_sentence(done):
        raise WrongError(f"no sentence: status {done.status}, {done.err[-400:]}")
    return REFUSED


# ---- texts

_WORDS = "the town votes for a new bridge\n"
TEXTS: dict[str, str | bytes] = {
    "nothing": "",
    "one character": "a",
    "two characters": "ab",
    "one newline": "\n",
    "newlines": "\n" * 500,
    "spaces": " " * 500,
    "tabs": "\t" * 500,
    "one letter often": "a" * 5000,
    "a long word": "abcdefghij" * 500,
    "no newline at the end": (_WORDS * 40)[:-1],
    "CRLF": _WORDS.replace("\n", "\r\n") * 40,
    "CR": _WORDS.replace("\n", "\r") * 40,
    "mixed line ends": "one\r\ntwo\nthree\rfour\n\r" * 40,
    "a byte order mark": "\ufeff" + _WORDS * 40,
    "byte order marks inside": (_WORDS + "\ufeff") * 40,
    "NULs": "a\0b\0\n" * 200,
    "control characters": "".join(map(chr, range(32))) * 60,
    "DEL and C1": "".join(map(chr, range(127, 160))) * 60,
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf\n" * 100,
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\n" * 100,
    "right to left": "שלום עולם مرحبا بالعالم\n" * 60,
    "direction marks": "\u202ea\u202cb\u2066c\u2069\n" * 100,
    "combining marks": "e\u0301a\u0308o\u0302\u0323\n" * 100,
    "many combining marks": "a" + "\u0301" * 2000 + "\n" + _WORDS * 20,
    "precomposed and not": "é e\u0301 Å A\u030a \u212b\n" * 60,
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 👍🏽\n" * 60,
    "beyond the basic plane": "\U0001d518\U0001d52b \U00010348 \U0002070e\n" * 60,
    "noncharacters": "a\ufffe\uffffb\U0010ffff\n" * 100,
    "private use": "\ue000\uf8ff\U000f0000\n" * 100,
    "replacement characters": "a\ufffdb\n" * 100,
    "Chinese": "今天天气很好\uff0c我们去公园散步。\n" * 60,
    "Thai": "สวัสดีชาวโลกวันนี้อากาศดี\n" * 60,
    "Korean in parts": "\u1112\u1161\u11ab\u1100\u1173\u11af\n" * 100,
    "every code point of two bytes": "".join(map(chr, range(0x80, 0x800))) * 3,
    "an EOS token's name": "<|endoftext|> and <|endoftext|>\n" * 60,
    "Hugging Face's signs": "Ġthe Ċ ▁a Ġ ▁▁ <s> </s> [UNK] <unk>\n" * 60,
    "JSON": '{"text": "a\\n\\u0000"}\n' * 60,
    "quotes and commas": "a,\"b\n\",'c'\n" * 100,
    "not UTF-8": b"caf\xe9 \xff\xfe\n" * 100,
    "UTF-16": (_WORDS * 40).encode("utf-16"),
    "half a character at the end": (_WORDS * 40).encode() + "é".encode()[:1],
    "an overlong NUL": (_WORDS * 40).encode() + b"\xc0\x80",
    "a surrogate in UTF-8": (_WORDS * 40).encode() + b"\xed\xa0\x80",
}


def _text(name: str, text: str | bytes) -> list[Finding]:
    """Through every tokenizer and datamodule."""
    path = Path("odd.txt")
    path.write_bytes(text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text)
    acts: dict[str, Callable[[], str]] = {}
    if isinstance(text, str):
        acts |= {f"{kind} tokenizer": partial(_tokenizer, kind, text) for kind in ("char", "byte", "bpe", "unigram")}
    acts |= {module: partial(_datamodule, module, path) for module in MODULES}
    return [Finding("inputs: odd texts", f"{name}, {kind}", _safely(act)) for kind, act in acts.items()]


def _safely(act: Callable[[], str]) -> str:
    try:
        return act()
    except UserError as error:
        return f"several lines: {error}" if "\n" in str(error) else REFUSED
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def _tokenizer(kind: str, text: str) -> str:
    """What is encoded comes back, of this text and of another one."""
    from datamodules.tokenizers import ByteTokenizer, CharTokenizer, train_tokenizer

    if kind in ("bpe", "unigram"):
        made: Any = train_tokenizer(kind, [text], 300)  # type: ignore[arg-type]
    else:
        made = ByteTokenizer(eos=True) if kind == "byte" else CharTokenizer.from_texts([text])
    for one in (text, _WORDS) if kind != "char" else (text,):
        if made.decode(made.encode(one)) != one:
            return "the text does not come back"
    return RIGHT


MODULES: dict[str, dict[str, Any]] = {
    "CharDataModule": {},
    "BPEDataModule": {"vocab_size": 300},
    "HeadlinesDataModule": {"tokenizer": "char"},
}


def _datamodule(name: str, path: Path) -> str:
    """The tokens of all splits mean the text of the file, and batches can be had."""
    import datamodules

    module = getattr(datamodules, name)(str(path), cache_dir="cache", block_size=8, tokens_per_step=16, **MODULES[name])
    module.prepare_data()
    module.setup("fit")
    next(iter(module.train_dataloader()))
    read = path.read_bytes().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    if name == "HeadlinesDataModule":
        return _same_titles(module, read)
    order = [split for split in ("train", "val", "test") if split in module.stores]
    documents = (one for split in order for one in module.stores[split].documents())
    text = "".join(module.tokenizer.decode(one.tolist()) for one in documents)
    return RIGHT if text == read else "the tokens do not mean the text"


def _same_titles(module: Any, read: str) -> str:
    wanted = sorted(line for line in read.split("\n") if line)
    found = [module.tokenizer.decode(one.tolist()) for store in module.stores.values() for one in store.documents()]
    return RIGHT if sorted(found) == wanted else "the documents are not the lines"


# ---- numbers

#: Options that start processes, wait for other machines, or are not of this verb.
LEFT_OUT = ("num_nodes",)


def _numeric_options() -> list[str]:
    """Dotted names of all options of `fit` whose default, or type, is a number."""
    from lit_gpt.cli.lightning_cli import LitCLI

    built: list[Any] = []

    class Names(LitCLI):
        def instantiate_classes(self) -> None:
            built.append(self._parser("fit"))

        def _run_subcommand(self, subcommand: str) -> None: ...

        def _parse_ckpt_path(self) -> None: ...

    cli = Names("fit", [])
    flat = vars(cli.config.fit.as_flat())
    kinds = {action.dest: str(getattr(action, "_typehint", None) or action.type) for action in built[0]._actions}
    numeric = [
        name
        for name, value in flat.items()
        if (isinstance(value, int | float) and not isinstance(value, bool))
        or any(word in kinds.get(name, "") for word in ("int", "float"))
    ]
    return sorted(n.replace(".init_args.", ".") for n in numeric if not n.endswith(LEFT_OUT))


def _number(base: Base, option: str, value: str) -> str:
    kept = [a for a in base.arguments if not a.startswith(f"--{option}=") and a != "--resume=auto"]
    length = [] if option.startswith("trainer.max_") else ["--trainer.max_steps=3"]
    if option.startswith("trainer.max_"):
        length = ["--trainer.max_time=00:00:00:03"] if option != "trainer.max_time" else ["--trainer.max_steps=3"]
    kept = [a for a in kept if not a.startswith("--trainer.max_")]
    done = typed([*kept, *length, f"--{option}={value}"], _little_memory)
    return _accepted_or_sentence(done)


def _little_memory() -> None:
    """A number that asks for all of the machine's memory is refused here before the machine suffers."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
