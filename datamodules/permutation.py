"""A pseudo-random permutation that is computed for each index and never stored."""

import numpy as np

_SMALL = 1024  # up to here random numbers are sorted, which takes 30 microseconds and mixes perfectly


def random_words(*entropy: int, words: int = 4) -> np.ndarray:
    """Random uint64 (words,), a pure function of the integers ``entropy``."""
    return np.random.SeedSequence(entropy).generate_state(words, np.uint64)


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Images of ``index`` under a pseudo-random permutation of range(n), in O(1) memory for any n up to 2**62.

    It is a Feistel network over the next power of two, with one round for each word of ``key``. Four rounds are enough
    (Luby and Rackoff 1988). An image that is not below n goes through the network again (cycle walking: Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), which takes less than two walks on average.

    Args:
        index: integers in range(n).
        n: size of the range.
        key: uint64 from `random_words`, an even number of them.
    """
    if n <= _SMALL:
        return np.argsort(random_words(*key.tolist(), words=n), kind="stable")[index]
    bits = (n - 1).bit_length()
    image = _feistel(index.astype(np.uint64), bits, key)
    while len(outside := np.flatnonzero(image >= n)):
        image[outside] = _feistel(image[outside], bits, key)
    return image.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, key: np.ndarray) -> np.ndarray:
    width, other = (
        np.uint64(bits - bits // 2),
        np.uint64(bits // 2),
    )  # bits of the left and right half, which swap
    low, other_low = (np.uint64(1) << width) - np.uint64(1), (np.uint64(1) << other) - np.uint64(1)
    left, right = x >> other, x & other_low
    for word in key:
        mixed = (right + word) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ (mixed >> np.uint64(32)) & low
        low, other_low = other_low, low
    return (left << other) | right
