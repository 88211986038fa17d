"""What the strands of a handler group share: whose an event is, what is down, and how much there is to do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from synckit_streams.model.event import Stored
from synckit_streams.ports.telemetry import Progressed
from synckit_streams.runtime.circuit import Circuit
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.handling import Handler
from synckit_streams.runtime.lanes import Lane
from synckit_streams.runtime.policy import Settled
from synckit_streams.runtime.unit import Unit


class Item(NamedTuple):
    """One event that waits for its turn; `handler` is None for what puts a dead letter back."""

    stored: Stored
    lane: Lane
    handler: Handler | None


class Tally(msgspec.Struct):
    """What a group has done in this life.

    Args:
        handled: Events whose handler succeeded.
        failed: Calls that raised.
        dead: Events that went to the dead letters.
    """

    handled: int = 0
    failed: int = 0
    dead: int = 0


class Desk:
    """What the strands of a group share.

    Args:
        driver: Of the node.
        group: Its name.
        handlers: Of the group.
    """

    def __init__(self, driver: Driver, group: str, handlers: Sequence[Handler]) -> None:
        self.driver = driver
        self.group = group
        self.routes: Mapping[tuple[str, str | None], Handler] = {
            (topic, type): each for each in handlers for topic in each.topics for type in (each.types or (None,))
        }
        self.circuits = {each.name: Circuit(each.breaker, driver.world) for each in handlers}
        self.tally = Tally()
        self.lanes: dict[int, Lane] = {}
        """All that this worker has."""
        self.read = 0
        """Up to where the log was dealt out."""
        self.end = 0
        """Where it ended when somebody looked last."""
        self.pending_events = 0
        self.pending_bytes = 0
        self.room = asyncio.Event()
        """Set when something was taken from what is pending."""
        self.stopped = asyncio.Event()
        self.ending = False
        """Whether whoever works is being cancelled: nobody else of ours does that to a strand."""
        self.changed = asyncio.Event()
        """Set when every strand should look again: a circuit has changed."""
        self.careful = 0
        """So many events are still to be committed one by one."""

    def progressed(self, unit: Unit, took_s: float) -> None:
        """Tell whoever watches what was committed."""
        self.driver.observe(
            Progressed(
                node=self.driver.settings.node,
                group=self.group,
                events=unit.events,
                answers=sum(len(drafts) for _, drafts in unit.answers),
                dead=unit.dead,
                parked=sum(len(lane.parked) for lane in self.lanes.values()),
                lag=self.end - self.read + self.pending_events,
                lanes=len(self.lanes),
                duration_s=took_s,
            )
        )

    def handler(self, stored: Stored) -> Handler | None:
        """Whose an event is."""
        event = stored.event
        return self.routes.get((event.topic, event.type)) or self.routes.get((event.topic, None))

    def settled(self, stored: Stored) -> Settled | None:
        """What puts a dead letter of this very group back; None for one of somebody else's."""
        with suppress(msgspec.MsgspecError):
            settled = msgspec.json.decode(stored.event.payload, type=Settled)
            if (settled.group, settled.node) == (self.group, self.driver.settings.node):
                return settled
        return None
