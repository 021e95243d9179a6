"""``doctor``: what is wrong with a training set-up, in a minute, before a run is paid for."""

import json
import sys
from dataclasses import asdict
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from lit_gpt.cli.arguments import with_packaged_configs
from lit_gpt.cli.lightning_cli import LitCLI
from lit_gpt.cli.shrink import shrunk
from lit_gpt.diagnostics.doctor import Setup, examine, table
from lit_gpt.diagnostics.result import Result


class DoctorCLI(LitCLI):
    """The command line of ``fit``, whose configuration is examined in small."""

    results: list[Result]

    def __init__(self, arguments: list[str]) -> None:
        super().__init__("fit", arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the option of the verb."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", action="store_true", help="Print the results as JSON, one object for each check.")

    def _parse_ckpt_path(self) -> None:
        """Nothing: there is no run to resume and no run folder to create."""

    def instantiate_classes(self) -> None:
        """Nothing: each short run makes its own objects."""

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        options = dict(vars(config.trainer))
        small = shrunk(config)
        if "model.init_args.sampled_softmax" in small:  # it makes a loss an estimate, which no two batches share
            small["model.init_args.sampled_softmax"] = 0
        # Small networks gain nothing from threads, which cost many times the work on a machine that is busy.
        torch.set_num_threads(1)
        setup = Setup(lambda: self._objects(small), options, whole=lambda: self._objects(config))
        self.results = examine(setup)

    def _objects(self, config: Namespace) -> tuple[LightningModule, LightningDataModule]:
        """New objects of a configuration."""
        built: Any = self.parser.instantiate(Namespace(fit=config, subcommand="fit")).fit
        return built.model, built.data


def main(arguments: list[str]) -> None:
    """Run the verb with its command line. The exit status is 1 if a check failed."""
    results = DoctorCLI(with_packaged_configs(arguments)).results
    as_json = "--json" in arguments
    print(json.dumps([asdict(result) for result in results], indent=1) if as_json else table(results))
    failures, passed = (sum(result.state == state for result in results) for state in ("FAIL", "pass"))
    if not as_json:
        print(f"\n{failures} failed, {passed} passed, {len(results) - failures - passed} not applicable")
    if failures:
        sys.exit(1)
