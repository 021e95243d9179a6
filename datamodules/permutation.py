"""A shuffle that is computed, not stored."""

import numpy as np

_SMALL = 1024  # below, sorting random numbers takes 30 microseconds and mixes perfectly


def random_words(*entropy: int, words: int = 6) -> np.ndarray:
    """Random uint64 (words,) that depend on nothing but the integers given."""
    return np.random.SeedSequence(entropy).generate_state(words, np.uint64)


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Images of ``index`` under a pseudo-random permutation of range(n), in O(1) memory for any n up to 2**62.

    A Feistel network over the next power of four, one round for each word of ``key`` (uint64), walked until the image
    falls below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): under four walks on average.
    """
    if n <= _SMALL:
        return np.argsort(random_words(*key.tolist(), words=n), kind="stable")[index]
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    image = _feistel(index.astype(np.uint64), half, key)
    while (outside := image >= n).any():
        image[outside] = _feistel(image[outside], half, key)
    return image.astype(np.int64)


def _feistel(x: np.ndarray, half: np.uint64, key: np.ndarray) -> np.ndarray:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & low
    for word in key:
        mixed = (right + word) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ (mixed >> np.uint64(32)) & low
    return (left << half) | right
