"""How long to wait before trying again."""

from __future__ import annotations


def next_delay_ms(attempt: int, *, base_ms: int, delay_ms_max: int, dice: float) -> int:
    """How long to wait before trying again: exponential, with full jitter.

    Args:
        attempt: Failures so far, from 1.
        base_ms: Upper bound of the first delay, in milliseconds.
        delay_ms_max: Largest delay ever returned, in milliseconds.
        dice: A draw from [0, 1). The caller owns the randomness, so a simulation can replay it.

    Raises:
        ValueError: attempt < 1, or dice outside [0, 1).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if attempt < 1 or not 0 <= dice < 1:
        raise ValueError(f"attempt {attempt} or dice {dice} is out of range")
    return int(dice * min(delay_ms_max, base_ms * 2 ** min(attempt - 1, 40)))
