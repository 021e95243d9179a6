"""Draws what a network has learned: probabilities, frequencies, losses, norms and attention.

A chart is an array of pixels (H, W, 3), and takes about 70 ms of a CPU. No window system is needed, and no state of
matplotlib is changed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

Pixels = np.ndarray
#: A blue and an orange that people with a colour vision deficiency tell apart.
BLUE, ORANGE = "#1f77b4", "#ff7f0e"


def next_tokens(context: str, labels: Sequence[str], probabilities: Sequence[float], truth: str, p: float) -> Pixels:
    """Bars of the likeliest next tokens after a context. The token of the text has another colour.

    Args:
        context: The end of the context.
        labels: The likeliest tokens.
        probabilities: The probability of each, from 0 to 1.
        truth: The token that follows in the text.
        p: Its probability.
    """
    figure, axes = _figure()
    colours = [ORANGE if label == truth else BLUE for label in labels]
    axes.barh(range(len(labels)), [100 * x for x in probabilities], color=colours)
    _name_bars(axes, labels)
    axes.set(xlabel="probability of the next token (%)", xlim=(0, 100))
    axes.set_title(_drawable(f"after …{context}"), fontsize=11, parse_math=False)
    note = f"text: {_drawable(truth)}, {100 * p:.1f} %"
    axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", color=ORANGE, weight="bold", parse_math=False)
    return _pixels(figure)


def token_frequencies(labels: Sequence[str], data: Sequence[float], model: Sequence[float], tokens: int) -> Pixels:
    """Bars of token frequencies: those of the text beside the mean of the predicted probabilities.

    Args:
        labels: The tokens, the most frequent first.
        data: Their share of the text, from 0 to 1.
        model: The mean of their predicted probabilities.
        tokens: How many tokens were counted.
    """
    figure, axes = _figure(4.6)
    places = np.arange(len(labels))
    axes.barh(places - 0.2, [100 * x for x in data], 0.4, color=BLUE, label="validation text")
    axes.barh(places + 0.2, [100 * x for x in model], 0.4, color=ORANGE, label="model (mean probability)")
    _name_bars(axes, labels)
    axes.set(xlabel=f"share of {tokens:,} tokens (%)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.36, 1), ncols=2, frameon=False, columnspacing=1)
    return _pixels(figure)


def loss_by_position(positions: Sequence[float], losses: Sequence[float]) -> Pixels:
    """The loss over the number of tokens that the model sees before and including the input token."""
    figure, axes = _figure(left=0.15)
    axes.plot(positions, losses, marker="o", markersize=4, color=BLUE)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="length of the context (tokens)", ylabel="validation loss (nats per token)")
    axes.grid(alpha=0.3)
    return _pixels(figure)


def layer_norms(names: Sequence[str], values: Sequence[float], label: str) -> Pixels:
    """A bar for each layer."""
    figure, axes = _figure(0.25 * len(names) + 1.1)
    axes.barh(range(len(names)), values, color=BLUE)
    _name_bars(axes, names)
    axes.set(xlabel=label)
    return _pixels(figure)


def attention_maps(weights: Mapping[str, np.ndarray]) -> Pixels:
    """A panel for each layer: how much attention a token (row) pays to itself and those before it (column)."""
    rows, columns = -(-len(weights) // 2), min(2, len(weights))
    figure = Figure(figsize=(1.65 * columns + 0.9, 1.7 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, matrix) in zip(panels.flat, weights.items(), strict=False):
        # The square root of the scale: most weights are near 0.
        image = axes.imshow(matrix, norm=PowerNorm(0.5, 0, 1), cmap="viridis", interpolation="nearest")
        axes.set_title(title, fontsize=10)
    for axes in panels.flat[len(weights) :]:
        axes.axis("off")
    figure.supxlabel("position of the key (tokens)", fontsize=10)
    figure.supylabel("position of the query (tokens)", fontsize=10)
    figure.colorbar(image, ax=panels, label="attention weight", shrink=0.8)
    return _pixels(figure)


def _figure(height: float = 3.1, left: float = 0.27) -> tuple[Figure, Axes]:
    """A figure as wide as TensorBoard's cards."""
    figure = Figure(figsize=(4.2, height))  # fixed margins: to compute them takes as long as to draw
    axes = figure.subplots()
    figure.subplots_adjust(left=left, right=0.96, bottom=0.5 / height, top=1 - 0.4 / height)
    return figure, axes


def _name_bars(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_drawable(label) for label in labels], parse_math=False)
    axes.invert_yaxis()


def _drawable(text: str) -> str:
    """The text with an escape in place of each character that the font lacks."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)


def _pixels(figure: Figure) -> Pixels:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
