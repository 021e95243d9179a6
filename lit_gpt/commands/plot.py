"""``plot``: draws the curves of runs as a PNG, from their metrics.csv. No server is needed."""

import argparse
from pathlib import Path
from typing import NoReturn

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datamodules.errors import UserError
from datamodules.files import expanded, write_atomically
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.outputs import check_output

#: What one panel shows: the beginning of its metrics' names, and the label of its axis.
PANELS = {
    "train/loss train_eval/loss val/loss": "loss (nats per token)",
    "lr/": "learning rate",
    "grad_norm": "gradient norm\n(before clipping)",
}
STYLES = (":", "--", "-", "-.")
SOFTWARE = b"lit-gpt plot"  # in the file, which a later plot may replace


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"plot: {message}; for example: python -m lit_gpt plot logs/char/version_0 --out curves.png.")


def main(arguments: list[str]) -> None:
    """Run the verb with its command line."""
    parser = _Parser(prog="python -m lit_gpt plot", description="Draw losses, learning rates and gradient norms.")
    parser.add_argument("runs", nargs="+", help="folders of runs, such as logs/char/version_0; all in one picture")
    parser.add_argument("--out", default="curves.png", help="the PNG to write (default: curves.png)")
    options = parser.parse_args(arguments)
    runs = {str(run): _metrics(expanded(run)) for run in options.runs}
    if not options.out.endswith(".png"):
        raise UserError(f"--out {options.out} is no name of a PNG: end it in .png.")
    out = expanded(options.out)
    check_output("--out", out, "plot", lambda path: SOFTWARE in path.read_bytes()[:200])
    figure = Figure(figsize=(9, 9), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    for axes, (names, label) in zip(panels, PANELS.items(), strict=True):
        _draw(axes, runs, tuple(names.split()), label)
    panels[-1].set(xlabel="optimizer step")
    metadata = {"Software": SOFTWARE.decode()}
    write_atomically(out, lambda file: FigureCanvasAgg(figure).print_png(file, metadata=metadata))
    print(out)


def _metrics(folder: Path) -> MetricsCSV:
    metrics = MetricsCSV(folder.parent if folder.name == "metrics.csv" else folder)
    if not metrics.path.is_file():
        raise UserError(f"{metrics.path} does not exist: give the folder of a run, such as logs/char/version_0.")
    if not any(metrics.curve(name) for name in metrics.columns[2:]):
        raise UserError(f"{metrics.path} has no complete row: plot a run that has logged a step.")
    return metrics


def _draw(axes: Axes, runs: dict[str, MetricsCSV], prefixes: tuple[str, ...], label: str) -> None:
    for number, (run, metrics) in enumerate(runs.items()):
        names = [name for prefix in prefixes for name in metrics.columns if name.startswith(prefix)]
        for i, points in enumerate(map(metrics.curve, names)):
            label_ = f"{run}  {names[i]}" if len(runs) > 1 else names[i]
            steps, values = [step for step, _ in points], [value for _, value in points]
            axes.plot(steps, values, STYLES[i % 4], marker=".", color=f"C{number % 10}", label=label_)
    axes.set(ylabel=label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=9)
