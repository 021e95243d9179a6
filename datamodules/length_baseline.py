"""What lengths alone tell about next-sentence labels: a logistic regression that sees no words."""

import numpy as np

from datamodules.rows import IGNORE_INDEX
from datamodules.sentence_pairs import FOLLOWS, RANDOM, PairRows

_STEPS = 12  # of Newton's method
_RIDGE = 1e-3
#: Labels that are looked at, where ten epochs have so many: the accuracy then has a standard error of half a point.
_ENOUGH, _EPOCHS = 20_000, 10


def length_accuracy(a: np.ndarray, b: np.ndarray, label: np.ndarray) -> float:
    """The accuracy of a logistic regression on lengths, fitted on one half of the pairs and measured on the other.

    Both labels count half, in fitting and in measuring, so that chance is 0.5 however many are random.

    Args:
        a: tokens of A, (n,).
        b: tokens of B, (n,).
        label: 0 or 1, (n,).
    """
    x, half = _features(a.astype(float), b.astype(float)), len(label) // 2
    scores = x[half:] @ _fitted(x[:half], label[:half].astype(float))
    right = (scores > 0) == label[half:]
    return float(np.mean([right[label[half:] == value].mean() for value in (FOLLOWS, RANDOM)]))


def _features(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1, both lengths, their sum, squares and product, and whether the sum is the largest one, (n, 8)."""
    total = a + b
    x = np.stack([a, b, total, a * a, b * b, a * b, total == total.max()], 1).astype(float)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    return np.concatenate([np.ones((len(x), 1)), x], 1)


def _fitted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weights of a logistic regression, (features,), by Newton's method."""
    share = np.where(y > 0, 0.5 / max(y.sum(), 1), 0.5 / max((1 - y).sum(), 1))  # of each pair, (n,)
    weights = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        hessian = (x * (share * p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(x.shape[1])
        weights += np.linalg.solve(hessian, x.T @ (share * (y - p)) - _RIDGE * weights)
    return weights


def pairs_line(rows: PairRows) -> str:
    """A line about the labels of the first epochs: the share of random ones, and what lengths alone tell."""
    parts: list[np.ndarray] = []
    for epoch in range(_EPOCHS):
        pairs = rows.pairs(epoch)
        parts.append(np.stack([pairs.a_length, pairs.b_length, pairs.label])[:, pairs.label != IGNORE_INDEX])
        if sum(part.shape[1] for part in parts) >= _ENOUGH:
            break
    a, b, label = np.concatenate(parts, 1)
    of_each = np.bincount(label, minlength=2)
    if of_each.min() < _EPOCHS:
        return f"pairs: {parts[0].shape[1]:,} labels in {rows.count:,} rows, too few to learn from"
    return (
        f"pairs: {parts[0].shape[1]:,} labels in {rows.count:,} rows, {of_each[RANDOM] / len(label):.1%} random; "
        f"lengths alone tell {length_accuracy(a, b, label):.1%} of the labels, and chance is 50 %"
    )
