"""What a seed plays: the profile, and within it everything that is drawn once at the beginning.

Self-repair hides bugs: a node that loses an event gets it back from a peer's digest, and nobody sees that it was lost.
So the profiles differ in what they take away. Each run goes through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from synckit_streams.sync.conflict import ConflictResolver
from synckit_streams.sync.resolvers import AdditiveMerge, FirstWriteWins, LastWriteWins

FAULTS = (
    "drop",
    "duplicate",
    "reorder",
    "delay",
    "partition",
    "one-way partition",
    "crash before commit",
    "crash after commit before acknowledge",
    "disk full",
    "fsync error",
    "broker rewind",
    "broker reset",
    "clone",
    "restore from backup",
    "clock ±1h",
    "poison",
)
"""By the names that protocol.md gives them."""

LOG_FAULTS = ("broker rewind", "broker reset")
DISK_LOSS = ("restore from backup",)


@dataclass(frozen=True)
class Profile:
    """One way to look for trouble.

    Args:
        name: As `--profile` takes it.
        why: What it is for, in a line.
        faults: Which ones it may draw.
        nodes: Least and most nodes.
        write_s: For how long clients write and faults happen, at most.
        pause_s: Mean time between two writes of one client.
        digests: Whether the nodes hear each other's digests.
        auto_sync: Whether nodes stay connected by themselves; else they sync one after another, never two at a time.
        rate: Messages a second that a reader takes; 0 is without a limit.
        publishes_max: Most messages that may reach a broker for each event written.
        bridges: Least and most nodes that are at both of two brokers; the others are at one each. (0, 0) is one broker.
    """

    name: str
    why: str
    faults: tuple[str, ...] = ()
    nodes: tuple[int, int] = (3, 5)
    write_s: float = 30.0
    pause_s: float = 1.5
    digests: bool = True
    auto_sync: bool = True
    rate: float = 0.0
    publishes_max: float = 16.0
    bridges: tuple[int, int] = (0, 0)


QUIET = Profile("quiet", "nothing breaks: each event is published once, and hardly ever twice", publishes_max=1.15)
FAULTY = Profile("faults", "everything that can break does", faults=FAULTS, nodes=(3, 7))
SILENT = Profile(
    "silent",
    "nobody hears a digest, so that no peer repairs what was lost",
    faults=FAULTS,
    digests=False,
)
ROTATION = Profile(
    "rotation",
    "no two nodes are ever online together, and one of them died for good",
    faults=("drop", "duplicate", "reorder", "crash before commit", "crash after commit before acknowledge", "disk full",
            "fsync error", "broker rewind", "broker reset", "clock ±1h", "poison"),
    auto_sync=False,
)  # fmt: skip
OVERLOAD = Profile(
    "overload",
    "five nodes write 125 events a second through one partition, and a reader takes 160",
    nodes=(5, 5),
    write_s=6.0,
    pause_s=0.04,
    rate=160.0,
    publishes_max=1.15,
)

BRIDGE = Profile(
    "bridge",
    "two brokers, and up to three bridges side by side between them; nothing breaks",
    nodes=(4, 6),
    publishes_max=1.15,
    bridges=(1, 3),
)
BRIDGES = Profile(
    "bridges",
    "two brokers and bridges between them, everything that can break does, and nobody hears a digest",
    faults=FAULTS,
    nodes=(4, 6),
    digests=False,
    bridges=(1, 3),
)

PROFILES = {each.name: each for each in (QUIET, FAULTY, SILENT, ROTATION, OVERLOAD, BRIDGE, BRIDGES)}

_ROUND = (
    "quiet", "faults", "silent", "rotation", "overload", "bridge", "bridges", "faults", "rotation", "faults",
    "silent", "faults", "quiet", "faults", "silent", "faults", "rotation", "faults", "silent", "bridges",
    "silent", "faults", "quiet", "faults",
)  # fmt: skip
"""Every profile is among the first seven; the later ones look for what is rare."""


def profile_of(seed: int) -> Profile:
    """Which profile a seed plays, if nobody chooses another one."""
    return PROFILES[_ROUND[seed % len(_ROUND)]]


def histories_of(seeds: Sequence[int], profile: str = "") -> list[tuple[int, str]]:
    """Which histories a run of these seeds plays, as seed and profile.

    Each seed plays its own profile, unless one is chosen for all. In a run of few seeds some of them play another
    profile as well, so that none is left out.
    """
    if profile or not seeds:
        return [(seed, profile) for seed in seeds]
    found = [(seed, profile_of(seed).name) for seed in seeds]
    played = {name for _, name in found}
    left = [name for name in PROFILES if name not in played]
    return found + [(seeds[number % len(seeds)], name) for number, name in enumerate(left)]


@dataclass(frozen=True)
class Plan:
    """What is drawn once."""

    seed: int
    profile: Profile
    nodes: int
    partitions: int
    topics: tuple[str, ...]
    aggregates: int
    resolver: Callable[[], ConflictResolver]
    sqlite: bool
    packing: str
    held_max: int
    clock_step_ms: int
    clock_leap_ms_max: int
    faults: tuple[str, ...]
    write_s: float
    bridges: int = 0


def plan_of(seed: int, profile: Profile) -> Plan:
    """What a seed draws."""
    dice = Random(f"plan {seed} {profile.name}")
    # Not all faults at once in every run: two that seldom meet do so in a run that has few others.
    faults = tuple(fault for fault in profile.faults if dice.random() < 0.6)
    if not profile.digests and set(DISK_LOSS) & set(faults):
        # What was on a disk that is put back, and in a log that is put back, is elsewhere: only digests bring it home.
        faults = tuple(fault for fault in faults if fault not in LOG_FAULTS)
    quiet = not faults
    # Of its own dice: what the other profiles draw does not hang on it.
    bridges = Random(f"bridges {seed}").randint(*profile.bridges)
    return Plan(
        seed=seed,
        profile=profile,
        nodes=dice.randint(*profile.nodes),
        partitions=1 if profile.rate else dice.choice((1, 1, 3)),
        topics=("orders",) if dice.random() < 0.6 else ("orders", "stock"),
        aggregates=dice.choice((1, 3, 6)),
        resolver=dice.choice((LastWriteWins, LastWriteWins, FirstWriteWins, _additive)),
        sqlite=dice.random() < 0.15,
        packing="batch" if not quiet and dice.random() < 0.2 else "event",
        held_max=dice.choice((2, 5)) if profile.digests and not quiet and dice.random() < 0.2 else 10_000,
        clock_step_ms=dice.choice((1, 1, 100, 2_000)),
        clock_leap_ms_max=600_000 if dice.random() < 0.3 else 7_200_000,
        faults=faults,
        # Drawn last. Short histories end in the middle of things, and there can be more of them.
        write_s=profile.write_s * (dice.choice((0.4, 0.7, 1.0)) if profile.faults and profile.auto_sync else 1.0),
        bridges=bridges,
    )


def _additive() -> ConflictResolver:
    return AdditiveMerge({"qty": "sum", "tags": "union"})
