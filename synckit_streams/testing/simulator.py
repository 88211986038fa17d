"""The simulator: the shipped node, driver, link and stores, in a world that is decided by a seed.

```python
from synckit_streams.testing.simulator import play

outcome = play(59, trace=True)
assert not outcome.failed, outcome.reasons
```

Only four things are not the shipped ones: the clock, the dice, the disk and the broker (see `simulation/`). A history
is a few nodes whose users write while things break; then the faults stop, everything may settle, and the verdict is
counted from each store's own log against what the simulation itself wrote down. `docs/explanation/simulation.md` says
what is broken, what is counted, and which bugs this finds when they are planted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from synckit_streams.errors import ConfigError
from synckit_streams.testing.simulation import history
from synckit_streams.testing.simulation.history import Outcome, Simulation
from synckit_streams.testing.simulation.hunting import Caught, hunt
from synckit_streams.testing.simulation.patching import diff
from synckit_streams.testing.simulation.planted import BUGS, BY_NAME, Planted
from synckit_streams.testing.simulation.pool import Tally, many, play_many
from synckit_streams.testing.simulation.profiles import FAULTS, PROFILES
from synckit_streams.testing.simulation.scenes import SCENES, play_scene

__all__ = [
    "BUGS",
    "FAULTS",
    "PROFILES",
    "SCENES",
    "Caught",
    "Outcome",
    "Planted",
    "Simulation",
    "Tally",
    "bug_named",
    "diff_of",
    "hunt",
    "hunt_many",
    "play",
    "play_many",
    "play_scene",
]


def play(seed: int, profile: str = "", *, trace: bool = False) -> Outcome:
    """Play one seed.

    Args:
        seed: Decides everything.
        profile: One of `PROFILES`; "" takes the seed's own.
        trace: Keep the timeline.
    """
    return history.play(seed, PROFILES[profile] if profile else None, trace=trace)


def bug_named(name: str) -> Planted:
    """A planted bug.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in BY_NAME:
        raise ConfigError(f"there is no planted bug {name!r}", hint=f"known: {', '.join(BY_NAME)}, or all")
    return BY_NAME[name]


def diff_of(bug: Planted) -> str:
    """What a planted bug changes in the shipped code, as a unified diff."""
    return diff(bug.edits)


def hunt_many(
    names: Sequence[str], seeds: int = 0, first_seed: int | None = None, *, jobs: int = 0
) -> Iterator[Caught]:
    """`hunt` for each of these bugs, in their order, on `jobs` processes (0: one a core)."""
    yield from many(hunt, [(name, seeds, first_seed) for name in names], jobs=jobs)
