"""Many seeds over several processes, and their sum."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from synckit_streams.testing.simulation.checks import KINDS
from synckit_streams.testing.simulation.history import Outcome, play
from synckit_streams.testing.simulation.profiles import FAULTS, PROFILES

T = TypeVar("T")


@dataclass
class Tally:
    """The sum of many outcomes."""

    seeds: int = 0
    events: int = 0
    published: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    profiles: Counter[str] = field(default_factory=Counter)
    failing: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.seeds += 1
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
            "seeds": self.seeds,
            "faults": list(FAULTS),
            "events": self.events,
            **{kind: self.counts[kind] for kind in KINDS},
            "failing_seeds": sorted({outcome.seed for outcome in self.failing}),
        }


def _play(job: tuple[int, str]) -> Outcome:
    seed, profile = job
    return play(seed, PROFILES[profile] if profile else None)


def play_many(seeds: Sequence[int], profile: str = "", *, jobs: int = 0) -> Iterator[Outcome]:
    """Play seeds, in any order, on `jobs` processes (0: one a core); gives each outcome as it comes."""
    work = [(seed, profile) for seed in seeds]
    jobs = min(jobs or os.cpu_count() or 1, len(work))
    if jobs <= 1:
        yield from map(_play, work)
        return
    with processes(jobs) as pool:
        yield from pool.imap_unordered(_play, work, chunksize=1)


def processes(jobs: int) -> multiprocessing.pool.Pool:
    """A pool whose processes leave Ctrl-C to their parent. Left with an error, its processes are ended at once."""
    return multiprocessing.get_context("spawn").Pool(jobs, initializer=_leave_interrupts)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
