"""Finds what is wrong with a training set-up, in a minute, before a run is paid for.

    from lit_gpt.diagnostics.doctor import Setup, examine
    results = examine(Setup(lambda: (MyModule(), MyData())))

A real but short run is watched: some checks ask the module at its start, others look at what the run did. Each check is
one function in a ``checks_*.py`` file here.
"""

import io
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

from lit_gpt.callbacks.resume import ExactResume, random_state, set_random_state
from lit_gpt.diagnostics import checks_context, checks_data, checks_model, checks_optimizer, checks_run
from lit_gpt.diagnostics.result import AFTER_RUN, AT_START, Result, described
from lit_gpt.diagnostics.run import Examination, Setup

__all__ = ["FILES", "Setup", "examine", "table"]

#: The files of the checks.
FILES = (checks_data, checks_model, checks_context, checks_optimizer, checks_run)
RUN = "a short run ends", "What stops a run of a few steps stops the whole one.", "what the message names"


def examine(setup: Setup, only: Iterable[str] | None = None) -> list[Result]:
    """The results of all checks, or of those with the names in ``only``.

    Raises:
        UserError: The set-up cannot begin to train: a wrong option, or a text that does not exist.
    """
    chosen = [c for c in (*AT_START, *AFTER_RUN) if only is None or vars(c)["check"] in set(only)]
    state = random_state()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return _examine(setup, Path(folder), chosen)
        finally:
            set_random_state(state)


def _examine(setup: Setup, folder: Path, chosen: list) -> list[Result]:
    examination = Examination(setup, folder, chosen)
    module, data = setup.objects()
    try:
        setup.trainer(folder, ExactResume(), examination, limit_val_batches=0).fit(module, data)
    except Exception as error:
        if examination.subject is None:
            raise
        return [*examination.results, Result(RUN[0], "FAIL", described(error), *RUN[1:])]
    subject = examination.subject
    assert subject is not None
    subject.run.end()
    ended = Result(RUN[0], "pass", f"{subject.run.steps} steps", *RUN[1:])
    return [*examination.results, ended, *(check(subject) for check in AFTER_RUN if check in chosen)]


def table(results: list[Result]) -> str:
    """A line for each check, and below a failure why it matters and what to change."""
    width = max(len(result.check) for result in results)
    lines = []
    for result in sorted(results, key=lambda result: ("FAIL", "pass", "not applicable").index(result.state)):
        state = "n/a" if result.state == "not applicable" else result.state
        lines.append(f"{state:<5} {result.check:<{width}}  {result.measured}")
        if result.state == "FAIL":
            lines += [f"      {'':<{width}}  {result.why}", f"      {'':<{width}}  Change: {result.option}."]
    return "\n".join(lines)
