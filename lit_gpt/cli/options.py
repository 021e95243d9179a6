"""The names of all options, read from the source files of their classes, because importing these takes seconds."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: Classes that --model and --data accept by their short names. The first of each is the default.
CLASSES = {
    "model": {
        "LitGPT": "lit_gpt.module.LitGPT",
        "LitExtendedGPT": "lit_gpt.methods.module.LitExtendedGPT",
        "LitBigram": "lit_gpt.baselines.module.LitBigram",
        "LitBERT": "lit_gpt.bert.module.LitBERT",
    },
    "data": {
        "CharDataModule": "datamodules.char.CharDataModule",
        "BPEDataModule": "datamodules.bpe.BPEDataModule",
        "HeadlinesDataModule": "datamodules.headlines.HeadlinesDataModule",
        "TokensDataModule": "datamodules.token_data.TokensDataModule",
        "BertDataModule": "datamodules.bert.BertDataModule",
    },
}
#: The class of the presets that are not of the default class.
CLASS_OF_PRESET = dict.fromkeys(("bert-base", "bert-large", "bert-tiny"), "LitBERT")
#: The verbs that take the options of fit.
VERBS_LIKE_FIT = ("fit", "data", "doctor")
#: Options that only one verb has. A config file may hold those of every verb.
OPTIONS_OF_ONE_VERB = {
    "fit": (
        *("name", "logs_dir", "resume", "shrink", "plan", "early_stopping", "val_at_start"),
        *("checkpoint", "samples", "tensorboard"),
    ),
    "predict": ("predictions",),
}
#: Options with dots, by the class that has them.
GROUPS = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "checkpoint": "lit_gpt.callbacks.checkpoints.RunCheckpoints",
    "samples": "lit_gpt.callbacks.samples.SampleText",
    "tensorboard": "lit_gpt.callbacks.tensorboard.TensorBoardCharts",
    "progress": "lit_gpt.callbacks.progress.RunProgress",
    "predictions": "lit_gpt.callbacks.predictions.WritePredictions",
}
COMMON = ("config", "seed_everything", "preset", "float32_matmul", "ckpt_path", "weights_only", "trainer", "progress")
#: Options that Lightning, or a verb of its own, adds.
MORE = {
    "validate": ("verbose",),
    "test": ("verbose",),
    "predict": ("return_predictions",),
    "data": ("batches", "rows", "verify", "prepare", "shard"),
    "doctor": ("json",),
}


def options_of_verb(verb: str) -> list[str]:
    """Dotted names of the options of a verb that builds a model and data, without those of model and data."""
    own = OPTIONS_OF_ONE_VERB.get("fit" if verb in VERBS_LIKE_FIT else verb, ())
    names = [*own, *COMMON, *MORE.get(verb, ())]
    return [option for name in names for option in (_expanded(name, GROUPS[name]) if name in GROUPS else [name])]


def options_of_class(slot: str, name: str | None) -> list[str] | None:
    """Dotted names of the options of a class, such as ``model.config.n_layer``. None: it is not one of `CLASSES`.

    Args:
        slot: model or data.
        name: The class, by its name or path. None: the default one.
    """
    own = CLASSES[slot]
    short = next(iter(own)) if name is None else name.rpartition(".")[2]
    if name and name != short and not name.startswith(("lit_gpt.", "datamodules.")):
        return None
    try:
        return list(_expanded(slot, own[short]))
    except (KeyError, LookupError):  # a class of another name, or a folder that is not installed
        return None


def options_of_other_classes(slot: str, but: str | None) -> dict[str, list[str]]:
    """The options of each class of a slot but one."""
    found = {name: options_of_class(slot, name) for name in CLASSES[slot]}
    return {name: options for name, options in found.items() if options and name != (but or "").rpartition(".")[2]}


def options_of_function(module: str, name: str) -> list[str]:
    """The parameters of a function. Empty: there is none of that name."""
    functions = (node for node in _tree(module).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return [argument for function in functions for argument in _arguments(function)]


def _expanded(prefix: str, path: str) -> Iterator[str]:
    """The options of a class, with the fields of a parameter that is a dataclass in its place."""
    module, _, name = path.rpartition(".")
    for parameter, (place, annotation) in _parameters(module, name).items():
        nested = _dataclass(place, annotation)
        option = f"{prefix}.{parameter}"
        yield from _expanded(option, nested) if nested else [option]


def _parameters(module: str, name: str) -> dict[str, tuple[str, ast.expr | None]]:
    """Parameters of a class's ``__init__``, or the fields of a dataclass: the module they stand in, and their type.

    An ``__init__`` that takes ``**options`` passes them to its base class.
    """
    module, node = _class(module, name)
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    inherited: dict[str, tuple[str, ast.expr | None]] = {}
    if init is None or init.args.kwarg:
        for base in node.bases:
            if isinstance(base, ast.Name) and _is_defined_here(module, base.id):
                inherited |= _parameters(module, base.id)
    own = _arguments(init) if init else _fields(node)
    return inherited | {parameter: (module, annotation) for parameter, annotation in own.items()}


def _arguments(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    names = [*function.args.args, *function.args.kwonlyargs]
    return {argument.arg: argument.annotation for argument in names if argument.arg != "self"}


def _fields(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    if not _is_dataclass(node):
        return {}
    fields = (part for part in node.body if isinstance(part, ast.AnnAssign))
    return {ast.unparse(part.target): part.annotation for part in fields}


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(isinstance(decorator, ast.Name) and decorator.id == "dataclass" for decorator in node.decorator_list)


def _dataclass(module: str, annotation: ast.expr | None) -> str | None:
    """The path of a parameter's type, if that is a dataclass of ours."""
    if not isinstance(annotation, ast.Name) or not _is_defined_here(module, annotation.id):
        return None
    place, node = _class(module, annotation.id)
    return f"{place}.{node.name}" if _is_dataclass(node) else None


def _is_defined_here(module: str, name: str) -> bool:
    """Whether a name is a class of this project."""
    try:
        return _class(module, name)[0].startswith(("lit_gpt.", "datamodules."))
    except LookupError:
        return False


@cache
def _class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """A class, and the module that defines it, which another may import."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names) and node.module:
            return _class(node.module, name)
    raise LookupError(name)


@cache
def _tree(module: str) -> ast.Module:
    top, *rest = module.split(".")
    spec = find_spec(top)  # of the top package only: a longer name would import it
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(module)
    path = Path(spec.submodule_search_locations[0], *rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        raise LookupError(module)
    return ast.parse(file.read_text(encoding="utf-8"))
