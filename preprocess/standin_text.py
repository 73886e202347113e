"""Texts for the synthetic stand-ins of ``--demo``: their topic decides which letters are common."""

from __future__ import annotations

import numpy as np

_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
_FAVOURED = 6


def topic_text(
    rng: np.random.Generator, topic: int, *, strength: float, lengths: tuple[int, int]
) -> bytes:
    """Return words of random letters.

    Args:
        rng: The source of randomness.
        topic: 0 to 3; each favours six letters of its own.
        strength: The share of letters taken from those six instead of all.
        lengths: Shortest and longest text, in bytes.
    """
    length = rng.integers(lengths[0], lengths[1] + 1)
    letters = rng.integers(0, len(_LETTERS), length)
    favoured = rng.random(length) < strength
    letters[favoured] = topic * _FAVOURED + rng.integers(0, _FAVOURED, favoured.sum())
    text = _LETTERS[letters]
    text[rng.random(length) < 1 / 6] = ord(" ")
    return text.tobytes()
