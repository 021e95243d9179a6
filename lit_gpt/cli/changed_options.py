"""Which options of a run differ from their defaults."""

from collections import Counter
from typing import Any

from jsonargparse import Namespace

#: Options that say where a run is stored and what it shows, not how it trains.
NOT_SHOWN = (
    *("config", "name", "logs_dir", "resume", "ckpt_path", "preset", "progress", "tensorboard", "samples"),
    *("trainer.logger", "trainer.callbacks", "trainer.default_root_dir", "trainer.log_every_n_steps"),
    *("trainer.val_check_interval", "trainer.limit_val_batches", "trainer.num_sanity_val_steps"),
)


def changed_options(config: Namespace, defaults: Namespace) -> dict[str, Any]:
    """The options of ``config`` that have another value in ``defaults``, by short names, and the seed.

    A name is the last part of the option's, ``n_layer``, or as much of it as no other has, ``config.dropout``.

    Args:
        config: The options of a verb.
        defaults: The same with default values, for the same classes of model and data.
    """
    options, plain = _flat(config), _flat(defaults)
    changed = {k: v for k, v in options.items() if k == "seed" or v != plain.get(k)}
    ends = Counter(end for name in changed for end in _ends(name))
    return {next((end for end in _ends(name) if ends[end] == 1), name): value for name, value in changed.items()}


def _flat(config: Namespace) -> dict[str, Any]:
    options = {}
    for key, value in vars(config.as_flat()).items():
        name = key.replace(".init_args", "").removesuffix(".class_path").replace("seed_everything", "seed")
        if not any(name == other or name.startswith(f"{other}.") for other in NOT_SHOWN):
            options[name] = value.rpartition(".")[2] if key.endswith(".class_path") else value
    return options


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
