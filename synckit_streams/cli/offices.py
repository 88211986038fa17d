"""The demo's cast and script: three offices, their airports, and who edits what while nobody can see it.

The airports are real (`data/NOTICE.md`), and so are the corrections: six rows of the source lack city and state, and
some airports have been renamed since.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from synckit_streams.model.event import Draft
from synckit_streams.ports.projection import Batch
from synckit_streams.ports.store import Transaction
from synckit_streams.sync.conflict import Conflict, Decision, Resolution

Airport = dict[str, str]

WEST, CENTRAL, EAST = OFFICES = ("west", "central", "east")
WEST_OF, EAST_OF = -98.0, -87.0
"""Longitudes between the offices' regions, in degrees."""


class Edit(NamedTuple):
    """One office corrects some fields of one airport."""

    office: str
    airport: str
    fields: Mapping[str, str]

    @property
    def id(self) -> str:
        """Of the event."""
        return f"{self.airport}-{self.office}"


# West and central edit the same six airports, other fields of each. Whoever stands lower wrote later.
CENTRAL_FIRST = (
    Edit(CENTRAL, "LAS", {"city": "Paradise"}),
    Edit(CENTRAL, "CLD", {"name": "McClellan-Palomar"}),
    Edit(CENTRAL, "RCA", {"name": "Ellsworth Air Base"}),
)
WEST_THEN = (
    Edit(WEST, "LAS", {"name": "Harry Reid Intl"}),
    Edit(WEST, "CLD", {"city": "Carlsbad", "state": "CA"}),
    Edit(WEST, "RCA", {"city": "Box Elder", "state": "SD"}),
    Edit(WEST, "STL", {"city": "St. Louis"}),
    Edit(WEST, "MIB", {"name": "Minot Air Base"}),
    Edit(WEST, "RDR", {"name": "Grand Forks Air Base"}),
)
CENTRAL_LAST = (
    Edit(CENTRAL, "STL", {"name": "St. Louis Lambert"}),
    Edit(CENTRAL, "MIB", {"city": "Minot", "state": "ND"}),
    Edit(CENTRAL, "RDR", {"city": "Grand Forks", "state": "ND"}),
)
# East edits what nobody else touches.
EAST_ALONE = (
    Edit(EAST, "HHH", {"city": "Hilton Head Island", "state": "SC"}),
    Edit(EAST, "SCE", {"city": "State College", "state": "PA"}),
    Edit(EAST, "SDF", {"name": "Louisville Muhammad Ali Intl"}),
)
EDITS = (*CENTRAL_FIRST, *WEST_THEN, *CENTRAL_LAST, *EAST_ALONE)
CONTESTED = tuple(edit.airport for edit in WEST_THEN)


def airports() -> list[Airport]:
    """The register, as it is in the source."""
    text = (files("synckit_streams.cli") / "data" / "airports.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def office_of(airport: Airport) -> str:
    """Whose region it lies in."""
    longitude = float(airport["longitude"])
    return WEST if longitude < WEST_OF else EAST if longitude >= EAST_OF else CENTRAL


def recorded(topic: str, mine: Sequence[Airport]) -> list[Draft]:
    """The events with which an office begins."""
    return [
        Draft(topic=topic, type="airport.recorded", aggregate_id=each["iata"], data=each, id=each["iata"])
        for each in mine
    ]


def edited(topic: str, edits: Sequence[Edit], register: Mapping[str, Airport]) -> list[Draft]:
    """The events of corrections: the whole record, with the fields changed."""
    return [
        Draft(
            topic=topic,
            type="airport.corrected",
            aggregate_id=edit.airport,
            data={**register[edit.airport], **edit.fields},
            id=edit.id,
        )
        for edit in edits
    ]


def per_state(register: Sequence[Airport]) -> Counter[str]:
    """Airports per state, counted without a store."""
    return Counter(each["state"] for each in register)


class AirportsPerState:
    """The read model: how many airports each state has, by the resolved records. A table beside the log.

    Args:
        topic: Of the register.
        table: The table's name.
        placeholders: Two of them, as the store's SQL writes them.
    """

    name = "airports-per-state"
    types: Sequence[str] = ()
    resolved = True

    def __init__(self, topic: str, table: str, placeholders: str) -> None:
        self.topics: Sequence[str] = (topic,)
        self._table = table
        self._placeholders = placeholders

    async def reset(self, tx: Transaction) -> None:
        """Begin with nothing."""
        await tx.execute(f"CREATE TABLE IF NOT EXISTS {self._table} (state TEXT PRIMARY KEY, airports INTEGER)")
        await tx.execute(f"DELETE FROM {self._table}")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Take back what was counted for an airport before, and count it as it is now."""
        moved: Counter[str] = Counter()
        for change in batch.changes:
            if change.previous is not None:
                moved[change.previous["state"]] -= 1
            moved[change.current["state"]] += 1
        await tx.execute_many(
            f"INSERT INTO {self._table} AS t VALUES ({self._placeholders}) "
            "ON CONFLICT (state) DO UPDATE SET airports = t.airports + excluded.airports",
            list(moved.items()),
        )


class FieldByField:
    """A resolver of one's own, in ten lines: each field as the last one who *changed* it left it."""

    name = "field-by-field"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        """See `ConflictResolver`. What the heads have in common stands in the event that all of them know."""
        base = next(
            (event for event in conflict.events if all(head.context.covers(event.dot) for head in conflict.heads)), None
        )
        merged = dict(base.data) if base is not None else {}
        for head in conflict.heads:
            merged.update(
                {field: value for field, value in head.data.items() if base is None or base.data[field] != value}
            )
        return Resolution(None, merged, conflict.heads, Decision.MERGE, ("each field as it was changed last",))
