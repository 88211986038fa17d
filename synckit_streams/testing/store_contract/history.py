"""Random histories beside a model that is made of sets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from synckit_streams.errors import StoreError
from synckit_streams.model.event import Draft, Event, Offset
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.moving import move
from synckit_streams.testing.store_contract.kit import (
    NOW_MS,
    TOPICS,
    Bench,
    Media,
    Writer,
    arrivals,
    audit,
    draft,
    opening,
    variant,
)
from synckit_streams.testing.store_model import StoreModel


class History(RuleBasedStateMachine):
    """One store through a random history, compared with `StoreModel` after each step."""

    media: Media
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.medium = f"history {next(self.numbers)}"
        self.fail = ""
        self.loop = asyncio.new_event_loop()
        self.model = StoreModel(TOPICS, held_max=6)
        self.pool: list[Event] = []
        self.writers = {(name, topic): Writer(name, topic=topic) for name in ("p@1", "q@1") for topic in TOPICS}
        self.offset = 0
        self.effects = 0
        """How many blocks with an effect were committed."""
        self.origins: set[str] = set()
        self.store = self.run(self._open())

    def run(self, call: Awaitable[Any]) -> Any:
        """On this history's own event loop."""
        return self.loop.run_until_complete(call)

    def probe(self, step: str) -> None:
        """Fails the commit when it is told to."""
        if step == self.fail:
            raise OSError("the disk says no")

    async def _open(self) -> EventStore:
        store = self.media.make(self.medium, probe=self.probe)
        await store.open(opening("n", held_max=6))
        return store

    aggregates = st.sampled_from(["x", "y"])
    topics = st.sampled_from(TOPICS)
    index = st.integers(0, 10**6)

    def pick(self, index: int) -> Event | None:
        """One of the events that were ever written."""
        return self.pool[index % len(self.pool)] if self.pool else None

    def arrive(self, *events: Event) -> None:
        """Deliver, and let the model take the same."""
        self.offset += 1
        place = Offset("broker", self.offset)
        self.run(self.store.append(received=arrivals(*events), offsets={"link": place}, now_ms=NOW_MS))
        for event in events:
            self.model.receive(event)

    @rule(topic=topics, aggregate_id=aggregates, knows=st.lists(index, max_size=2), after=st.lists(index, max_size=1))
    def somebody_writes(self, topic: str, aggregate_id: str, knows: list[int], after: list[int]) -> None:
        """A peer writes, while nobody listens."""
        writer = self.writers["pq"[len(self.pool) % 2] + "@1", topic]
        known = [
            each for at in knows if (each := self.pick(at)) and (each.topic, each.aggregate_id) == (topic, aggregate_id)
        ]
        causes = [each.key for at in after if (each := self.pick(at)) is not None]
        self.pool.append(writer.write(aggregate_id, knows=known, after=causes))

    @rule(at=index, number=st.integers(0, 3))
    def a_key_is_used_twice(self, at: int, number: int) -> None:
        """A copy of a store, own or foreign, wrote something else under a key."""
        if (event := self.pick(at)) is not None and event.seq < 20:
            self.pool.append(variant(event, number))

    @rule(picks=st.lists(index, min_size=1, max_size=4))
    def events_arrive(self, picks: list[int]) -> None:
        """In any order, any number of times."""
        if self.pool:
            self.arrive(*(self.pool[at % len(self.pool)] for at in picks))

    async def block(self, drafts: Sequence[Draft]) -> Any:
        """With an effect, which is a note, and an offset."""
        async with self.store.transaction() as tx:
            await tx.append(drafts, now_ms=NOW_MS)
            await tx.set_offset("handler", Offset(self.store.id, self.effects + 1))
            await tx.note_applied("handler", [("orders", "x", b"%d" % (self.effects + 1))])
        assert tx.appended is not None
        return tx.appended

    @rule(topic=topics, aggregate_id=aggregates, times=st.integers(1, 3), block=st.booleans())
    def the_node_writes(self, topic: str, aggregate_id: str, times: int, block: bool) -> None:
        """Numbers and contexts are those that the model computes from all that is there."""
        drafts = [draft(aggregate_id, topic=topic, id=None) for _ in range(times)]
        result = self.run(self.block(drafts) if block else self.store.append(drafts, now_ms=NOW_MS))
        self.effects += block
        for stored in result.appended:
            event = stored.event
            last = max((key.seq for key in self.model.events if key[:2] == (topic, event.origin)), default=0)
            assert event.seq == last + 1
            assert event.context == self.model.context(topic, aggregate_id)
            assert event.prev == event.context.get(event.origin, 0)
            self.model.events[event.key] = event
            self.model.settle()
            self.pool.append(event)

    @rule(topic=topics)
    def a_lost_key_is_void(self, topic: str) -> None:
        """One of those that somebody waits for."""
        wanted = self.run(self.store.summary(topic)).wanted
        if wanted:
            self.run(self.store.append(voids=wanted[:1], now_ms=NOW_MS))
            self.model.declare_void(wanted[0])

    @rule()
    def it_restarts(self) -> None:
        """Cleanly."""
        self.run(self.store.close())
        self.store = self.run(self._open())

    @rule()
    def it_is_killed(self) -> None:
        """Nothing acknowledged is lost."""
        self.run(self.media.kill(self.store))
        self.store = self.run(self._open())

    @rule()
    def it_moves_house(self) -> None:
        """Into a new medium, where the history goes on."""
        self.run(self.store.close())
        old, self.medium = self.medium, f"history {next(self.numbers)}"
        self.run(move(partial(self.media.make, old), partial(self.media.make, self.medium), page_events=3))
        self.store = self.run(self._open())

    @rule()
    def a_block_fails(self) -> None:
        """Neither its effect nor its events are there."""
        self.fail = "commit"
        with pytest.raises((OSError, StoreError)):
            self.run(self.block([draft("x"), draft("y")]))
        self.fail = ""

    @rule(picks=st.lists(index, min_size=1, max_size=3))
    def a_commit_fails(self, picks: list[int]) -> None:
        """Neither the events nor the offset are there."""
        if not self.pool:
            return
        self.fail = "commit"
        with pytest.raises((OSError, StoreError)):
            self.run(
                self.store.append(
                    [draft("x")],
                    arrivals(*(self.pool[at % len(self.pool)] for at in picks)),
                    offsets={"link": Offset("broker", 10**9)},
                    now_ms=NOW_MS,
                )
            )
        self.fail = ""

    @invariant()
    def store_and_model_agree(self) -> None:
        """In all that can be asked."""
        self.run(audit(self.store))
        for topic in TOPICS:
            summary = self.run(self.store.summary(topic))
            assert summary.seen == self.model.seen(topic)
            assert dict(summary.sums) == self.model.sums(topic)
            assert set(summary.held) == {event.key for event in self.model.held if event.topic == topic}
            assert summary.voids == {key for key in self.model.voids if key.topic == topic}
        offset = self.run(self.store.offset("link"))
        assert (offset.position if offset else 0) == self.offset
        stands = self.run(self.store.offset("handler"))
        noted = self.run(self.store.applied("handler", after=None, limit=9))
        assert (stands.position if stands else 0) == self.effects
        assert [state for _, _, state in noted] == [b"%d" % self.effects] * bool(self.effects)

    def teardown(self) -> None:
        """Close it, also after a failure."""
        self.fail = ""
        with suppress(Exception):
            self.run(self.store.close())
        self.loop.close()


class Histories(Bench):
    """Everything at once.

    Args:
        histories: How many random histories are compared with the model.
        steps: How long each of them is.
    """

    histories = 60
    steps = 40

    # --- everything at once ------------------------------------------------------------------------------------------

    async def test_any_history_agrees_with_a_model_of_sets(self, media: Media) -> None:
        """Whatever is written, received twice, early or twice used, lost, restarted, killed or moved."""
        bounds = settings(
            max_examples=self.histories,
            stateful_step_count=self.steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

        class HistoryHere(History):
            pass

        HistoryHere.media = media
        # In a thread, since a history has an event loop of its own.
        await asyncio.to_thread(run_state_machine_as_test, HistoryHere, settings=bounds)
