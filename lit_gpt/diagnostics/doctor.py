"""Finds what is wrong with a training set-up, in a minute, before a run is paid for.

    from lit_gpt.diagnostics.doctor import Setup, examine
    results = examine(Setup(lambda: (MyModule(), MyData())))

A real but short run is watched: some checks ask the module at its start, others look at what the run did. Each check is
one function in a ``checks_*.py`` file here.
"""

import io
import tempfile
import textwrap
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

from datamodules.errors import UserError
from lit_gpt.callbacks.resume import ExactResume, random_state_kept
from lit_gpt.diagnostics import checks_context, checks_data, checks_model, checks_optimizer, checks_run
from lit_gpt.diagnostics.result import AFTER_RUN, AT_START, Result, described
from lit_gpt.diagnostics.run import Examination, Setup

__all__ = ["FILES", "Setup", "examine", "table"]

#: The files of the checks.
FILES = (checks_data, checks_model, checks_context, checks_optimizer, checks_run)
STATES = ("FAIL", "pass", "not applicable")
RUN = "a short run ends", "What stops a run of a few steps stops the whole one.", "what the message names"


def examine(setup: Setup, only: Iterable[str] | None = None) -> list[Result]:
    """The results of all checks, or of those with the names in ``only``.

    Raises:
        UserError: The set-up cannot begin to train: a wrong option, or a text that does not exist.
    """
    chosen = [c for c in (*AT_START, *AFTER_RUN) if only is None or vars(c)["check"] in set(only)]
    with (
        random_state_kept(),
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        return _examine(setup, Path(folder), chosen)


def _examine(setup: Setup, folder: Path, chosen: list) -> list[Result]:
    examination = Examination(setup, folder, chosen)
    try:
        module, data = setup.objects()
        setup.trainer(folder, ExactResume(), examination, limit_val_batches=0).fit(module, data)
    except Exception as error:
        if isinstance(error, UserError) and examination.subject is None:
            raise
        if examination.subject is None:
            raise UserError(f"the run cannot begin ({described(error)}): mend what the message names.") from error
        # What stops the run stops most checks too: it is said once.
        results = [result for result in examination.results if result.measured != described(error)]
        return [*results, Result(RUN[0], "FAIL", described(error), *RUN[1:])]
    subject = examination.subject
    assert subject is not None
    subject.run.end()
    ended = Result(RUN[0], "pass", f"{subject.run.steps} steps", *RUN[1:])
    return [*examination.results, ended, *(check(subject) for check in AFTER_RUN if check in chosen)]


def table(results: list[Result]) -> str:
    """The checks in 80 columns, failures first. Below a failure stand why it matters and what to change."""
    width = max((len(result.check) for result in results), default=0) + 7
    lines = []
    for result in sorted(results, key=lambda result: STATES.index(result.state)):
        state = "n/a" if result.state == STATES[-1] else result.state
        below = [result.why, f"Change: {result.option}."] if result.state == "FAIL" else []
        for first, text in [(f"{state:<5} {result.check}", result.measured), *(("", text) for text in below)]:
            start = f"{first:<{width}} "
            lines += textwrap.wrap(
                text, 80, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
            )
    return "\n".join(lines)
