"""Backoff with full jitter, as a pure function of the dice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.sync.pace import next_delay_ms


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_delay_lies_between_nothing_and_its_bound(attempt: int, dice: float) -> None:
    """Full jitter: anywhere below a bound that doubles up to a limit."""
    bound = min(60_000, 500 * 2 ** min(attempt - 1, 60))
    assert 0 <= next_delay_ms(attempt, base_ms=500, delay_ms_max=60_000, dice=dice) <= bound


def test_delays_grow_to_their_limit() -> None:
    """By hand."""
    delays = [next_delay_ms(attempt, base_ms=500, delay_ms_max=60_000, dice=0.5) for attempt in range(1, 10)]
    assert delays == [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
    assert next_delay_ms(9, base_ms=500, delay_ms_max=60_000, dice=0.0) == 0


@pytest.mark.parametrize(("attempt", "dice"), [(0, 0.5), (-1, 0.5), (1, 1.0), (1, -0.1)])
def test_what_makes_no_sense_is_an_error(attempt: int, dice: float) -> None:
    """No attempt yet, or no draw from [0, 1)."""
    with pytest.raises(ValueError, match="out of range"):
        next_delay_ms(attempt, base_ms=500, delay_ms_max=60_000, dice=dice)
