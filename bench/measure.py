"""Two sides measured in turn, and what is said about them.

A rate alone says how fast the machine is and how busy its neighbours are. So each round measures both sides, one right
after the other, in alternating order; the ratio is the median over the rounds of what the two had to each other.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median


class Skipped(Exception):
    """This machine lacks what the row needs; the message says what."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: By which `--only` finds it.
        ours: What we reach, in `unit`.
        other: What the other side reaches, or what is allowed.
        ratio: The larger the better: ours over theirs for a rate, allowed over measured for a cost.
        wanted: The least ratio that we want.
        unit: Of `ours` and `other`.
    """

    name: str
    ours: float
    other: float
    ratio: float
    wanted: float
    unit: str


@dataclass(frozen=True)
class Scale:
    """How much work a row does.

    Args:
        events: Of the main rows; 100,000 unless somebody is in a hurry.
        rounds: How often each side is measured.
        long: Whether the rows over ten times `events` run too.
    """

    events: int
    rounds: int
    long: bool


@dataclass(frozen=True)
class Case:
    """One row to be: `run` measures it in a directory of its own.

    Args:
        name: See `Row`.
        about: What is measured against what, in a sentence.
        run: Gives the row.
        long: Takes minutes; left out of a quick run.
    """

    name: str
    about: str
    run: Callable[[Scale, Path], Row]
    long: bool = False


Side = Callable[[Path], float]
"""Does the work in an empty directory, and gives the rate."""


def compare(name: str, ours: Side, other: Side, *, wanted: float, unit: str, scale: Scale, directory: Path) -> Row:
    """A row from two sides measured in turn."""
    sides = {"ours": ours, "other": other}
    found: dict[str, list[float]] = {"ours": [], "other": []}
    for at in range(scale.rounds):
        for side in ("ours", "other") if at % 2 == 0 else ("other", "ours"):
            place = directory / f"{name}-{at}-{side}"
            place.mkdir()
            settle()
            found[side].append(sides[side](place))
    ratios = [mine / theirs for mine, theirs in zip(found["ours"], found["other"], strict=True)]
    return Row(name, median(found["ours"]), median(found["other"]), median(ratios), wanted, unit)


def settle() -> None:
    """Let what the last side wrote reach the disk, so that it is not the next one that pays for it."""
    gc.collect()
    os.sync()


class Watch:
    """Seconds between the beginning and the end of a block."""

    seconds = 0.0


@contextmanager
def timed() -> Iterator[Watch]:
    """How long the block takes."""
    watch = Watch()
    started = time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - started
