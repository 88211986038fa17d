"""A circuit breaker: while what a handler depends on is down, it is not called, and no attempts are burnt."""

from __future__ import annotations

from synckit_streams.runtime.driver import World
from synckit_streams.runtime.policy import Breaker
from synckit_streams.sync.pace import next_delay_ms


class Circuit:
    """Closed, until so many calls in a row have failed by what the breaker names; then open. After a pause one call is
    let through: if it succeeds the circuit is closed, and if it fails the pause is longer.

    Args:
        breaker: When, and for how long.
        world: Time and chance.
    """

    def __init__(self, breaker: Breaker, world: World) -> None:
        self.until_ms = 0
        """While it is open: when the next call is let through, by the wall clock."""
        self._breaker = breaker
        self._world = world
        self._streak = 0
        self._pauses = 0
        self._trying = False

    @property
    def open(self) -> bool:
        """Whether what it depends on counts as down."""
        return self._streak >= self._breaker.failures

    @property
    def ready(self) -> bool:
        """Whether one may call. Whoever does says that he begins, and how it went."""
        return not self.open or (not self._trying and self._world.wall_ms() >= self.until_ms)

    @property
    def trying(self) -> bool:
        """Whether it is open, and a call is under way that tells whether it may be closed."""
        return self.open and self._trying

    def begin(self) -> None:
        """A call is made."""
        self._trying = True

    def _says_down(self, error: BaseException | None) -> bool:
        """Also from within a group, which is what a TaskGroup raises."""
        errors = self._breaker.errors
        if isinstance(error, BaseExceptionGroup) and errors:
            return error.subgroup(errors) is not None
        return isinstance(error, errors)

    def tell(self, error: BaseException | None) -> None:
        """How a call went."""
        self._trying = False
        if not self._says_down(error):
            # Also another failure is an answer: it is not down.
            self._streak = self._pauses = 0
            return
        self._streak += 1
        if self.open:
            self._pauses += 1
            self.until_ms = self._world.wall_ms() + next_delay_ms(
                self._pauses,
                base_ms=self._breaker.pause_ms,
                delay_ms_max=self._breaker.pause_ms_max,
                dice=0.5 + self._world.dice() / 2,  # between half and whole: what is down is not asked at once
            )
