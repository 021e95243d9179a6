"""The help of a verb: lit_gpt's options first, by topic, then those of Lightning's Trainer."""

from argparse import SUPPRESS, Action
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_gpt.cli.options import CLASSES

#: Topics in their order, each with the first parts of its options' names. The first topic has all other options.
TOPICS: dict[str, tuple[str, ...]] = {
    "the run": (),
    "network and optimizer": ("model",),
    "data": ("data",),
    "checkpoints": ("checkpoint",),
    "samples of text, after validations": ("samples",),
    "pictures in TensorBoard": ("tensorboard",),
    "predictions": ("predictions",),
    "lines of progress": ("progress",),
    "Lightning's Trainer": ("trainer", "weights_only"),
}
#: Sentences in place of Lightning's, which are about its own command line and checkpoints.
SENTENCES = {
    "config": "A YAML file of options. Several are read in their order; what comes later on the line wins.",
    "print_config": "Print all options with their values, and exit.",
    "seed_everything": "Seed of the weights, the order of the batches, and dropout; true draws one.",
    "ckpt_path": "The checkpoint to read: a file, or the folder of a run.",
    "weights_only": "Passed to torch.load. A checkpoint is read without running code in any case.",
    "model": f"Class of the model: {', '.join(CLASSES['model'])}, or the path of your own, such as mine.LitGRU.",
    "data": f"Class of the data: {', '.join(CLASSES['data'])}, or the path of your own.",
    "model.help": "Print the options of a class of the model, such as LitGPT, and exit.",
    "data.help": "Print the options of a class of the data, such as CharDataModule, and exit.",
}
WHERE = (
    "Options of network and optimizer: --model.help LitGPT (or LitExtendedGPT, LitBigram, LitBERT). Options of the "
    "data: --data.help CharDataModule (or BPEDataModule, HeadlinesDataModule, TokensDataModule, BertDataModule)."
)
#: Longest option with its value that is shown on one line of 80 columns.
LONGEST = 70


def arrange(parser: Any, verb: str) -> None:
    """Order the help of a verb's parser by `TOPICS`, and put short sentences in the place of Lightning's.

    Args:
        parser: The parser with all its options.
        verb: The verb that is typed.
    """
    parser.usage = f"python -m lit_gpt {verb} [--config FILE] [--OPTION VALUE ...]"
    parser.description = WHERE
    actions: dict[str, list[Action]] = {topic: [] for topic in TOPICS}
    for action in parser._actions:
        _shorten(action)
        actions[_topic(action)].append(action)
    usual = list(parser._action_groups)
    parser.arranged = [_group(parser, topic, of_topic) for topic, of_topic in actions.items() if of_topic]
    parser._action_groups = usual  # of which jsonargparse makes objects


@contextmanager
def shown(parser: Any) -> Iterator[None]:
    """Gives a parser the groups of `arrange` for as long as its help is printed, or that of one class short titles."""
    usual, usage = parser._action_groups, parser.usage
    if parser.arranged:
        parser._action_groups = parser.arranged
    else:
        parser.usage = "python -m lit_gpt VERB [--OPTION VALUE ...]"
        for group in usual:
            if len(group.title or "") > LONGEST:
                group.title, group.description = "options", group.title
    try:
        yield
    finally:
        parser._action_groups, parser.usage = usual, usage


def _topic(action: Action) -> str:
    first = _name(action).partition(".")[0]
    return next((topic for topic, names in TOPICS.items() if first in names), next(iter(TOPICS)))


def _group(parser: Any, topic: str, actions: list[Action]) -> Any:
    group = parser.add_argument_group(topic)
    group._group_actions = actions
    return group


def _shorten(action: Action) -> None:
    name = _name(action)
    whole_group = "." not in name and name in (first for names in TOPICS.values() for first in names)
    if whole_group and name not in (*SENTENCES, *CLASSES):
        action.help = SUPPRESS  # a config file of one group alone
    if action.help != SUPPRESS:
        action.help = SENTENCES.get(name, action.help)
    if name in CLASSES:
        action.metavar = "CLASS"
    elif action.choices is None and action.nargs != 0 and len(name) + len(str(action.metavar or name)) > LONGEST - 20:
        action.metavar = "VALUE"


def _name(action: Action) -> str:
    return next((option[2:] for option in action.option_strings if option.startswith("--")), "")
