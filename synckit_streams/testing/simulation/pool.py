"""Many seeds over several processes, and their sum."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from synckit_streams.testing.simulation.checks import KINDS
from synckit_streams.testing.simulation.history import Outcome, play
from synckit_streams.testing.simulation.profiles import FAULTS, PROFILES, histories_of

T = TypeVar("T")


@dataclass
class Tally:
    """The sum of many outcomes."""

    seeds: set[int] = field(default_factory=set)
    histories: int = 0
    events: int = 0
    published: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    profiles: Counter[str] = field(default_factory=Counter)
    failing: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.seeds.add(outcome.seed)
        self.histories += 1
        self.events += outcome.events
        self.published += outcome.published
        self.counts.update(outcome.counts)
        self.faults.update(outcome.faults)
        self.profiles[outcome.profile] += 1
        if outcome.failed:
            self.failing.append(outcome)

    def as_json(self) -> dict[str, object]:
        """The summary line."""
        return {
            "seeds": len(self.seeds),
            "faults": list(FAULTS),
            "events": self.events,
            **{kind: self.counts[kind] for kind in KINDS},
            "failing_seeds": sorted({outcome.seed for outcome in self.failing}),
        }


def _play(seed: int, profile: str) -> Outcome:
    return play(seed, PROFILES[profile])


def play_many(seeds: Sequence[int], profile: str = "", *, jobs: int = 0) -> Iterator[Outcome]:
    """Play seeds on `jobs` processes (0: one a core), as `histories_of` says; gives each outcome as it comes."""
    yield from many(_play, histories_of(seeds, profile), jobs=jobs)


def many(do: Callable[..., T], work: Sequence[tuple[object, ...]], *, jobs: int = 0) -> Iterator[T]:
    """Call a module's function with each of these arguments on `jobs` processes; gives the answers in their order."""
    if len(work) <= 1:
        yield from (do(*each) for each in work)
        return
    # Also one job is a process of its own: Ctrl-C would come in the middle of a history, where a store takes whatever
    # is raised for the failure of a commit, and goes on.
    jobs = min(jobs or os.cpu_count() or 1, len(work))
    with processes(jobs) as pool:
        yield from pool.imap(_Call(do), work, chunksize=1)


class _Call(Generic[T]):
    """A function of several arguments as one of a tuple, which a pool can hand over."""

    def __init__(self, do: Callable[..., T]) -> None:
        self._do = do

    def __call__(self, arguments: tuple[object, ...]) -> T:
        return self._do(*arguments)


def processes(jobs: int) -> multiprocessing.pool.Pool:
    """A pool whose processes leave Ctrl-C to their parent. Left with an error, its processes are ended at once."""
    with _interrupts_wait():
        return multiprocessing.get_context("spawn").Pool(jobs, initializer=_leave_interrupts)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C is heard afterwards; a process that is started meanwhile does not hear it before it can ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
