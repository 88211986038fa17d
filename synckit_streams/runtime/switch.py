"""What whoever operates a node wants of a projection, and how far that has come: kept in the store, beside the
projection's place.

It is read in the transaction of each page, so a projection that was paused applies nothing more from then on, in
whichever process it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from synckit_streams.ports.store import EventStore, Transaction

SWITCHES = "switch|projection"
"""The name under which the store keeps them."""
PAGE_NOTES = 1_000
WANT, FROM, REBUILD, TABLES = "", "from", "rebuild", "tables"
"""What is kept of one projection; in the place of an aggregate id."""


class Want(StrEnum):
    """What is wanted."""

    RUN = "run"
    PAUSE = "pause"
    """It stays where it is."""
    REBUILD = "rebuild"
    """It reads the log from the beginning: beside the live model if its tables are known, and otherwise in place."""
    REBUILD_IN_PLACE = "rebuild-in-place"
    """It is made empty with its next page, and reads the log from the beginning."""
    REPLAY = "replay"
    """It reads the log again from a position on, and keeps what it has."""
    RESET = "reset"
    """It is made empty, and stays so until it is to run again."""


class Rebuild(msgspec.Struct, frozen=True, array_like=True):
    """A read model that is being built beside the live one.

    Args:
        build: What the shadow is known by.
        since_ms: When it was begun, by the wall clock.
        position: How far it was at the last look.
        reason: Why it does not go on; "" if it does.
    """

    build: str
    since_ms: int
    position: int = 0
    reason: str = ""


class Switch(NamedTuple):
    """What is noted of a projection.

    Args:
        want: What is wanted of it.
        position: From where a replay begins.
        rebuild: What is being built beside it.
        tables: Those that it writes, as its last process has said; None if it has not.
    """

    want: Want = Want.RUN
    position: int = 0
    rebuild: Rebuild | None = None
    tables: tuple[str, ...] | None = None


_encode = msgspec.msgpack.encode


def _decoded(notes: dict[str, bytes]) -> Switch:
    decode = msgspec.msgpack.decode
    want, position, rebuild, tables = (notes.get(name) for name in (WANT, FROM, REBUILD, TABLES))
    return Switch(
        Want(want.decode()) if want else Want.RUN,
        int(position) if position else 0,
        decode(rebuild, type=Rebuild) if rebuild else None,
        decode(tables, type=tuple[str, ...]) if tables else None,
    )


async def read_switch(tx: Transaction, projection: str) -> Switch:
    """What is noted of a projection."""
    names = (WANT, FROM, REBUILD, TABLES)
    found = await tx.applied(SWITCHES, [(projection, name) for name in names])
    return _decoded({name: state for name, state in zip(names, found, strict=True) if state is not None})


async def turn_switch(tx: Transaction, projections: Sequence[str], what: Want, *, position: int = 0) -> None:
    """Say what is wanted of some projections.

    Args:
        tx: Of the store.
        projections: Which.
        what: Is wanted.
        position: From where a replay begins.
    """
    state = b"" if what is Want.RUN else what.encode()
    start = b"%d" % position if what is Want.REPLAY else b""
    await tx.note_applied(
        SWITCHES, [(each, name, noted) for each in projections for name, noted in ((WANT, state), (FROM, start))]
    )


async def note_rebuild(tx: Transaction, projection: str, rebuild: Rebuild | None) -> None:
    """Keep what is being built beside a projection; None if nothing is."""
    await tx.note_applied(SWITCHES, [(projection, REBUILD, b"" if rebuild is None else _encode(rebuild))])


async def note_tables(tx: Transaction, projection: str, tables: Sequence[str]) -> None:
    """Keep which tables a projection writes, for whoever wants to know from outside how it is rebuilt."""
    await tx.note_applied(SWITCHES, [(projection, TABLES, _encode(tuple(tables)))])


async def switches(store: EventStore) -> dict[str, Switch]:
    """What is noted of every projection of which something is."""
    found: dict[str, dict[str, bytes]] = {}
    after: tuple[str, str] | None = None
    while page := await store.applied(SWITCHES, after=after, limit=PAGE_NOTES):
        for projection, name, state in page:
            found.setdefault(projection, {})[name] = state
        after = page[-1][:2]
    return {projection: _decoded(notes) for projection, notes in found.items()}
