"""fit, validate, test and predict: Lightning's command line with run folders, callbacks, presets and short errors."""

import re
import signal
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessRaisedException

from datamodules import BertDataModule, BPEDataModule, CharDataModule, HeadlinesDataModule, TokensDataModule
from datamodules.errors import UserError, is_refusal, refusal
from datamodules.tokenizers import tokenizer_from_dict
from lit_gpt import LitBERT, LitBigram, LitGPT, checkpoint
from lit_gpt.bounds import is_out_of_memory, out_of_memory
from lit_gpt.callbacks import run_folder
from lit_gpt.callbacks.artifacts import LogArtifacts
from lit_gpt.callbacks.checkpoints import AtomicCheckpointIO
from lit_gpt.callbacks.metrics_csv import run_loggers
from lit_gpt.callbacks.predictions import WritePredictions
from lit_gpt.callbacks.progress import RunProgress
from lit_gpt.callbacks.resume import ExactResume
from lit_gpt.callbacks.scored import PrintScoredText
from lit_gpt.callbacks.signals import Interrupted
from lit_gpt.callbacks.start import EvaluateAtStart
from lit_gpt.callbacks.summary import RunSummary
from lit_gpt.callbacks.throughput import Throughput
from lit_gpt.cli import lost_processes, micro_batch, run_data, shrink
from lit_gpt.cli.arguments import value_of, wants_plan, with_packaged_configs
from lit_gpt.cli.changed_options import changed_options
from lit_gpt.cli.chosen_folder import FolderCLI
from lit_gpt.cli.early import chosen_classes, other_options
from lit_gpt.cli.fit_options import add_fit_options
from lit_gpt.cli.friendly_errors import CommandLine, friendly_error
from lit_gpt.cli.help import arrange
from lit_gpt.cli.meeting import Meeting
from lit_gpt.cli.options import OPTIONS_OF_ONE_VERB
from lit_gpt.cli.parser import parser_class, prepare_parsing
from lit_gpt.cli.presets import PRESETS, default_model
from lit_gpt.cli.processes import check_launcher
from lit_gpt.cli.quiet import quieten_lightning
from lit_gpt.cli.restoring import restoring
from lit_gpt.cli.run_facts import run_facts
from lit_gpt.cli.values import check_values, preset
from lit_gpt.language_model import LitLanguageModel, print_rank_zero
from lit_gpt.protocols import with_defaults

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # our loaders give each process its rows
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # RunSummary shows the network
    "max_epochs": -1,
    "check_val_every_n_epoch": None,  # val_check_interval counts optimizer steps, across epochs
    "val_check_interval": 250,
}


def _methods() -> tuple[type, ...]:
    """LitExtendedGPT, if lit_gpt.methods is installed. The core works without it."""
    with suppress(ModuleNotFoundError):
        return (resolve_name("lit_gpt.methods.module:LitExtendedGPT"),)
    return ()


#: Classes that --model and --data accept by their short names, because they are imported here.
DATAMODULES = (CharDataModule, BPEDataModule, HeadlinesDataModule, TokensDataModule, BertDataModule)
MODULES = (LitGPT, *_methods(), LitBigram, LitBERT)
#: Default options, by preset and classes.
_DEFAULTS: dict[tuple[str | None, ...], Namespace] = {}
Matmul = Literal["highest", "high", "medium"]


def run(verb: str, arguments: list[str]) -> None:
    """Run one of Lightning's verbs with its command line."""
    arguments = with_packaged_configs(arguments)
    if verb == "fit" and wants_plan(arguments):
        resolve_name("lit_gpt.cli.plan:PlanCLI")(arguments)  # imported here: it imports this file
    else:
        LitCLI(verb, arguments)


class LitCLI(FolderCLI):
    """Lightning's command line for one verb.

    Args:
        verb: fit, validate, test or predict. Only this verb's parser is built.
        arguments: The command line after the verb.
    """

    typed_verb = ""  # where it is another than the verb of Lightning's

    def __init__(self, verb: str, arguments: list[str]) -> None:
        quieten_lightning()
        run_folder.set_rank()
        lost_processes.watch_children()
        prepare_parsing()
        self.verb = verb
        self.preset = preset(arguments)
        with self._as_user_errors():
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                save_config_callback=None,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=1337,
                parser_kwargs={"prog": "python -m lit_gpt", "exit_on_error": False, verb: {"exit_on_error": False}},
                parser_class=parser_class(arguments),
                args=[verb, *arguments],
            )

    @contextmanager
    def _as_user_errors(self) -> Iterator[None]:
        """Turn errors of Lightning into UserErrors, and remove the folder of a run that never began."""
        try:
            yield
        except (MisconfigurationException, ModuleNotFoundError) as error:
            raise UserError(friendly_error(str(error))) from error
        except ValueError as error:  # from Lightning, when it counts the batches of an epoch
            if "`val_check_interval`" not in str(error):
                raise
            raise UserError(friendly_error(str(error))) from error
        except ProcessRaisedException as error:  # from a forked process, with its traceback as text
            if (message := re.search(r"^datamodules\.errors\.UserError: (.*)$", str(error), re.MULTILINE)) is None:
                raise
            raise UserError(message[1]) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, micro_batch.fix(self)) from error
        except OSError as error:
            if not is_refusal(error) or error.filename or self.verb != "fit":
                raise
            # A failed write names no file: TensorBoard writes in another thread, and lines go to stdout.
            raise refusal(error, f"the run in {self.folder}") from error
        except SIGTERMException:  # RunCheckpoints handles it only after training began, in fit
            raise Interrupted(signal.SIGTERM) from None
        finally:
            run_folder.pass_on_no_more()
            self._remove_unused_folder()

    # ---- options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the verb that was typed."""
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def _prepare_subcommand_parser(self, *args: Any, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(*args, **kwargs)
        if self.verb in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # Lightning's table of the metrics that RunProgress has printed
        arrange(parser, self.typed_verb or self.verb)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add lit_gpt's options, and the default classes of model and data."""
        parser.set_defaults(
            {
                "model": default_model(self.preset),
                "data": {"class_path": _path(DATAMODULES[0])},
            }
        )
        parser.add_argument(
            "--preset", type=str | None, default=None, help=f"Architecture to start from: {', '.join(PRESETS)}."
        )
        parser.add_argument(
            "--float32_matmul", type=Matmul, default="high", help="Precision of float32 matmuls on CUDA; high is TF32."
        )
        if self.verb == "fit":
            add_fit_options(parser)
        if self.verb == "predict":
            parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.add_lightning_class_args(RunProgress, "progress")
        for key in self._options_of_other_verbs():
            parser.add_argument(f"--{key}", type=Any, default=None, help=SUPPRESS)

    def _options_of_other_verbs(self) -> list[str]:
        return [key for verb, keys in OPTIONS_OF_ONE_VERB.items() if verb != self.verb for key in keys]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line. An error is one sentence."""
        for argument in args:
            key = argument.removeprefix("--").split("=")[0]
            if argument.startswith("--") and key.split(".")[0] in self._options_of_other_verbs():
                raise UserError(f"--{key} is no option of {self.verb}: leave it out (in a config file it may stay).")
        self.stored = {}
        path = None if self.verb == "fit" else value_of("ckpt_path", args)
        if path is not None:
            self.stored = checkpoint.read(checkpoint.file_of(path))[checkpoint.KEY]
        self.config, line = run_data.parsed(self._parsed, self.verb, self.stored.get("data"), args[1:])
        if line:
            print_rank_zero([line])
        check_values(self.verb, self.config[self.verb])
        if self.verb == "fit":
            self.config.fit = shrink.if_asked(self.config.fit)

    def _parsed(self, args: list[str]) -> Namespace:
        """The configuration of a command line. An error of the parser becomes a UserError."""
        try:
            return self.parser.parse_args([self.verb, *args])
        except ArgumentError as error:
            raise UserError(friendly_error(str(error), self._command_line(args))) from error

    def _command_line(self, arguments: list[str]) -> CommandLine:
        """What an error message about a command line needs: the options of the verb and of the chosen classes."""
        chosen = chosen_classes(arguments)
        flags = [part for slot, cls in chosen.items() if cls for part in (f"--{slot}", cls)]
        try:
            parsed = self.parser.parse_args([self.verb, *flags])
        except ArgumentError:  # the class itself is wrong
            parsed = self.parser.parse_args([self.verb])
        keys = [key.replace(".init_args.", ".") for key in vars(parsed[self.verb].as_flat())]
        known = [key for key in keys if key not in self._options_of_other_verbs()]
        classes = {"model": _names(MODULES), "data": _names(DATAMODULES)}
        return CommandLine(arguments, known, other_options(chosen), classes, self.typed_verb or self.verb)

    # ---- checkpoints

    def _parse_ckpt_path(self) -> None:
        """Take the model's configuration from the checkpoint, except in `fit`, which takes it from the command line.

        Lightning would let stored hyper-parameters override the command line in every verb.
        """
        config = self.config[self.verb]
        check_launcher(config.trainer)
        if self.verb == "fit":
            self._choose_folder()
        elif config.ckpt_path is None:
            raise UserError(
                f"{self.verb} needs a checkpoint: add --ckpt_path logs/NAME/version_N/checkpoints/best.ckpt."
            )
        else:
            config.ckpt_path = str(checkpoint.file_of(config.ckpt_path))
            path = checkpoint.module_of(self.stored, config.model.class_path)
            if issubclass(module := resolve_name(path), LitLanguageModel):
                checkpoint.config_of(module.config_class, self.stored["config"])  # refuses an option of a newer version
            model = {"class_path": path, "init_args": {"config": self.stored["config"]}}
            if path != config.model.class_path:  # the parser would merge the configurations of both classes
                config.model = None
            self.config = self.parser.parse_object({self.verb: {"model": model}}, self.config)

    # ---- objects

    def instantiate_classes(self) -> None:
        """Build model, data and trainer, and set the precision of matmuls."""
        torch.set_float32_matmul_precision(
            self.config[self.verb].float32_matmul if torch.cuda.is_available() else "highest"
        )
        self.config_init = self.instantiated()
        self.model, self.datamodule = (self.config_init[self.verb][slot] for slot in ("model", "data"))
        self.trainer = self.instantiate_trainer()
        self._hand_over_tokenizer()

    def _hand_over_tokenizer(self) -> None:
        """Give the checkpoint's tokenizer to the data. In a resumed run only a tokenizer that would be trained is
        replaced.
        """
        if self.stored.get("tokenizer"):
            data = with_defaults(self.datamodule)
            set_tokenizer = data.reuse_tokenizer if self.verb == "fit" else data.use_tokenizer
            set_tokenizer(tokenizer_from_dict(self.stored["tokenizer"]))

    def instantiated(self) -> Namespace:
        """The objects of the configuration. A wrong combination of values is a UserError."""
        try:
            return self.parser.instantiate(self.config)
        except (ValueError, ArgumentError) as error:
            raise UserError(friendly_error(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the loggers, callbacks and atomic checkpoints of lit_gpt."""
        trainer = self.config_init[self.verb]["trainer"]
        plugins = trainer["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        chosen: dict[str, Any] = {
            "plugins": [*plugins, AtomicCheckpointIO()],
            "logger": self._loggers(trainer["logger"]),
        }
        if trainer["enable_progress_bar"] is False:
            self._parser(self.verb).callback_keys.remove("progress")
        if self.verb == "fit":
            chosen["default_root_dir"] = trainer["default_root_dir"] or self.folder  # a fast_dev_run has no loggers
            self.trainer_defaults = {**TRAINER_DEFAULTS, "callbacks": self._callbacks()}
            if self.config[self.verb].val_at_start:
                chosen["num_sanity_val_steps"] = -1  # the sanity check, over the whole split: see EvaluateAtStart
        else:
            self.trainer_defaults = {**TRAINER_DEFAULTS, "callbacks": [PrintScoredText(self.stored["fingerprints"])]}
        try:
            built = super().instantiate_trainer(**chosen, **kwargs)
        except (ValueError, TypeError) as error:  # an unknown strategy or accelerator, or devices that are no number
            raise UserError(friendly_error(str(error))) from error
        _check_names(built)
        return built

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit":
            micro_batch.settle(self)
        config = self.config[subcommand]
        path = Path(config.ckpt_path) if config.ckpt_path else None
        meeting = Meeting(lambda: run_facts(config, (type(self.model), type(self.datamodule))), path, self._adopt)
        meeting.attach(self.trainer)
        if self.claimed and isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            self.claimed.release()  # a forked process could not lock what its parent has locked
        with restoring(config.ckpt_path), closing(meeting):
            super()._run_subcommand(subcommand)

    def _adopt(self, path: Path) -> None:
        """Take the tokenizer of a checkpoint that process 0 has sent."""
        if isinstance(self.model, LitLanguageModel):
            self.stored = checkpoint.read(path, mmap=True)[checkpoint.KEY]
            self._hand_over_tokenizer()

    def _loggers(self, logger: Any) -> Any:
        return run_loggers(self.folder, logger, self._changed) if self.verb == "fit" else logger or False

    def _changed(self) -> dict[str, Any]:
        config = self.config[self.verb]
        classes = tuple(f"--{slot}={config[slot].class_path}" for slot in ("model", "data"))
        key = (self.preset, *classes)
        if key not in _DEFAULTS:  # a fifth of a second, once a process
            _DEFAULTS[key] = self._parsed([*classes])[self.verb]
        return changed_options(config, _DEFAULTS[key])

    def resolved_config(self) -> str:
        """What config.yaml holds. It starts a new run like this one, so it must not name a checkpoint."""
        fresh = self.config[self.verb].clone()
        del fresh["ckpt_path"], fresh["resume"], fresh["plan"]
        resolved: str = self._parser(self.verb).dump(fresh, skip_unset=False)
        return resolved

    def _callbacks(self) -> list[Callback]:
        config = self.config[self.verb]
        summary = RunSummary(run_folder.hash_of(self.settings), config.seed_everything)
        hashed = run_folder.hash_of(self.settings)
        self.folder_callback = run_folder.RunFolder(self.folder, self.resolved_config(), hashed, self.claimed)
        callbacks: list[Callback] = [self.folder_callback, Throughput(), ExactResume()]
        callbacks += [summary, LogArtifacts()]
        if config.val_at_start:
            callbacks.append(EvaluateAtStart())
        if config.early_stopping:
            callbacks.append(EarlyStopping("val/loss", patience=config.early_stopping))
        return callbacks


def _check_names(trainer: Trainer) -> None:
    """Refuse a ModelCheckpoint of the user that would replace or delete the run's own best.ckpt or last.ckpt."""
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.dirpath is not None:
            continue
        if callback.save_last or callback.filename in ("best", "last"):
            option = "save_last" if callback.save_last else f"filename {callback.filename}"
            raise UserError(
                f"a ModelCheckpoint with {option} would replace the run's own best.ckpt or last.ckpt, which are saved "
                "in any case: leave that out."
            )


def _names(classes: Iterable[type]) -> list[str]:
    return [cls.__name__ for cls in classes]


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"
