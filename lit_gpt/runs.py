"""Names a run that exists, for the message about a path that holds no checkpoint."""

import re
from difflib import get_close_matches
from pathlib import Path

#: Where runs are, if a path does not say.
LOGS = Path("logs")


def advice_on_folder(folder: Path) -> str:
    """The end of the message about a folder without a checkpoint: the newest run below it, if there is one."""
    runs = _runs_below(folder)
    if not runs and re.fullmatch(r"version_\d+", folder.name):
        return "this run has saved none yet, so give another run's folder"
    return f"give the folder of a run, such as {runs[-1]}" if runs else "give the folder of a run, logs/NAME/version_N"


def advice_on_missing(path: Path) -> str:
    """The end of the message about a path that does not exist: the run whose path is most like it, or the newest."""
    above = [folder for folder in (path.parent, path.parent.parent) if folder.is_dir() and folder.name]
    runs = [run for folder in (*above, LOGS) for run in _runs_below(folder)]
    wanted = re.sub(r"(/checkpoints)?/[^/]*\.ckpt$", "", str(path))
    names = {form: run for run in runs for form in (str(run), str(run.parent))}
    near = get_close_matches(wanted, names, n=1, cutoff=0.75)
    if near:
        return f"did you mean {names[near[0]]}?"
    return f"give a checkpoint or the folder of a run, such as {runs[-1]}." if runs else "give a file that `fit` saved."


def _runs_below(folder: Path) -> list[Path]:
    """The runs with a checkpoint below a folder, the newest last."""
    files = [file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/checkpoints/*.ckpt")]
    return list(dict.fromkeys(file.parents[1] for file in sorted(files, key=lambda file: file.stat().st_mtime)))
