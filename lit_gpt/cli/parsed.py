"""The command line of a verb without the run."""

from lit_gpt.cli.lightning_cli import LitCLI


class ParsedCLI(LitCLI):
    """Parses and checks a command line. It claims no run's folder and builds and runs nothing."""

    def _parse_ckpt_path(self) -> None:
        """Claim no run's folder."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""
