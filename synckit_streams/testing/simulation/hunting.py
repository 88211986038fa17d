"""Plants a bug, and plays until something is wrong."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from synckit_streams.testing.simulation.patching import Stale, changed
from synckit_streams.testing.simulation.planted import BY_NAME, Planted


class Caught(NamedTuple):
    """How one bug was found, or not.

    Args:
        name: Of the bug.
        by: "seed 12 (silent)" or "scene cause-lost-with-its-disk"; "" if it was missed.
        seeds: How many seeds were played.
        reasons: What was wrong.
        took_s: Seconds.
    """

    name: str
    by: str
    seeds: int
    reasons: tuple[str, ...]
    took_s: float

    def as_json(self) -> dict[str, object]:
        """The bug's line."""
        reason = self.reasons[0] if self.reasons else ""
        return {"bug": self.name, "caught": bool(self.by), "by": self.by, "seeds": self.seeds, "reason": reason}


def hunt(name: str, seeds: int = 0, first_seed: int | None = None) -> Caught:
    """Plant one bug, and play until something is wrong.

    Args:
        name: Of the bug.
        seeds: Most seeds; 0 takes the bug's own number.
        first_seed: Play from this seed on, without what is known of the bug's scene and of the seed that finds it soon.
    """
    started = time.perf_counter()
    try:
        by, played, reasons = _hunt(BY_NAME[name], seeds, first_seed)
    except Stale as error:
        by, played, reasons = "", 0, [f"it cannot be planted any more: {error}"]
    return Caught(name, by, played, tuple(reasons), time.perf_counter() - started)


def _hunt(bug: Planted, seeds: int, first_seed: int | None) -> tuple[str, int, list[str]]:
    played = 0
    with changed(bug.edits):
        # By name: these are other modules than those that this one was imported with.
        history: Any = importlib.import_module("synckit_streams.testing.simulation.history")
        profiles: Any = importlib.import_module("synckit_streams.testing.simulation.profiles")
        scenes: Any = importlib.import_module("synckit_streams.testing.simulation.scenes")
        profile = profiles.PROFILES[bug.profile] if bug.profile else None
        for seed in _order(bug, seeds, first_seed):
            # On the memory store, which some of the changes are in.
            outcome = scenes.play_scene(bug.scene) if seed is None else history.play(seed, profile, memory=True)
            played += seed is not None
            if outcome.failed:
                by = f"scene {bug.scene}" if seed is None else f"seed {seed} ({outcome.profile})"
                return by, played, outcome.reasons
    return "", played, []


def _order(bug: Planted, seeds: int, first_seed: int | None) -> Iterator[int | None]:
    """What is played, one after another; None is the bug's scene."""
    seeds = seeds or bug.seeds
    if first_seed is not None:
        yield from range(first_seed, first_seed + seeds)
        return
    if bug.scene:
        yield None
    else:
        yield bug.sooner
        yield from (seed for seed in range(seeds) if seed != bug.sooner)
