"""What whoever operates a node wants of a projection: kept in the store, beside the projection's place.

It is read in the transaction of each page, so a projection that was paused applies nothing more from then on, in
whichever process it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from synckit_streams.ports.store import EventStore, Transaction

SWITCHES = "switch|projection"
"""The name under which the store keeps them."""
PAGE_NOTES = 1_000


class Want(StrEnum):
    """What is wanted."""

    RUN = "run"
    PAUSE = "pause"
    """It stays where it is."""
    REBUILD = "rebuild"
    """It is made empty with its next page, and reads the log from the beginning."""
    RESET = "reset"
    """It is made empty, and stays so until it is to run again."""


async def read_switch(tx: Transaction, projection: str) -> Want:
    """What is wanted of a projection."""
    (noted,) = await tx.applied(SWITCHES, [(projection, "")])
    return Want(noted.decode()) if noted else Want.RUN


async def turn_switch(tx: Transaction, projections: Sequence[str], what: Want) -> None:
    """Say what is wanted of some projections."""
    state = b"" if what is Want.RUN else what.encode()
    await tx.note_applied(SWITCHES, [(projection, "", state) for projection in projections])


async def switches(store: EventStore) -> dict[str, Want]:
    """What is wanted, of every projection of which something else is wanted than to run."""
    found: dict[str, Want] = {}
    after: tuple[str, str] | None = None
    while page := await store.applied(SWITCHES, after=after, limit=PAGE_NOTES):
        found |= {projection: Want(state.decode()) for projection, _, state in page}
        after = page[-1][:2]
    return found
