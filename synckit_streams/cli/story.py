"""The demo's plot: six scenes in which the offices are never all online, told to whoever draws them.

Every scene opens nodes, lets them write or meet, and closes them again. So what a scene leaves behind is what is on the
disk, and an office that is offline has no connector at all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from typing import NamedTuple

from synckit_streams.cli import offices
from synckit_streams.cli.audit import Audit, audit
from synckit_streams.cli.holdings import heads_by_aggregate
from synckit_streams.cli.offices import CENTRAL, EAST, OFFICES, WEST
from synckit_streams.cli.shelf import Shelf
from synckit_streams.errors import ConnectorError, Timeout
from synckit_streams.model.codec import encode_payload
from synckit_streams.model.event import Draft
from synckit_streams.ports.projection import Projection
from synckit_streams.ports.telemetry import Detail, Observer, Published
from synckit_streams.runtime.node import SyncNode
from synckit_streams.sync.conflict import Resolution, conflict_of, resolve
from synckit_streams.testing.brokers import Server

MEETINGS_MAX = 20
"""How often an office tries to meet the others before the demo gives up."""
DOWN_S = 0.3
"""For how long the server stays down after it was killed."""
PAUSE_S = 0.01
"""Between two offices' edits, so that who wrote last does not hang on a millisecond."""


class Scene(NamedTuple):
    """What a scene left behind.

    Args:
        online: The offices that could be reached.
        events: How many events each office's store holds at the end.
        story: What happened, in a few words.
    """

    online: tuple[str, ...]
    events: dict[str, int]
    story: str


class Answered(NamedTuple):
    """A conflict, as every node answers it.

    Args:
        airport: Which.
        resolution: By last-write-wins.
        merged: What a resolver of one's own makes of the same events.
    """

    airport: str
    resolution: Resolution
    merged: Resolution


class Ending(NamedTuple):
    """How it ended.

    Args:
        audit: Counted from each store's log.
        conflicts: The aggregates with more than one head, sorted, and the answer; the same on every node, or else
            `agreed` is False.
        model: The read model: airports per state.
        agreed: Whether answers and read models are the same on all nodes.
    """

    audit: Audit
    conflicts: Sequence[Answered]
    model: dict[str, int]
    agreed: bool

    @property
    def converged(self) -> bool:
        """Everything is everywhere, once, and everybody answers alike."""
        return self.agreed and self.audit.converged


class Story:
    """One run.

    Args:
        shelf: Where the offices keep their stores.
        url: The broker.
        topic: Of the register.
        server: The broker, if it is ours to kill.
    """

    def __init__(self, shelf: Shelf, url: str, topic: str, server: Server | None) -> None:
        self.shelf = shelf
        self.register = {airport["iata"]: airport for airport in offices.airports()}
        self.written: dict[str, bytes] = {}
        self._url = url
        self._topic = topic
        self._server = server
        self._events = dict.fromkeys(OFFICES, 0)

    @property
    def before(self) -> Counter[str]:
        """Airports per state before anybody corrected anything, counted without a store."""
        return offices.per_state(list(self.register.values()))

    # --- the scenes --------------------------------------------------------------------------------------------------

    async def scenes(self) -> AsyncIterator[Scene]:
        """One after another, each when it is over.

        Raises:
            SyncKitError: the offices did not find together.
        """
        regions: dict[str, list[offices.Airport]] = {office: [] for office in OFFICES}
        for airport in self.register.values():
            regions[offices.office_of(airport)].append(airport)
        await asyncio.gather(*(self._write(each, offices.recorded(self._topic, regions[each])) for each in OFFICES))
        yield self._scene((), "each office records the airports of its region")

        await self._meet(WEST, CENTRAL)
        yield self._scene((WEST, CENTRAL), "west and central meet; east is away")

        await self._edit(CENTRAL, offices.CENTRAL_FIRST)
        await self._edit(WEST, offices.WEST_THEN)
        await self._edit(CENTRAL, offices.CENTRAL_LAST)
        await self._edit(EAST, offices.EAST_ALONE)
        yield self._scene((), f"west and central edit the same {len(offices.CONTESTED)} airports")

        if self._server is not None:
            await self._meet(WEST, EAST, accident=self._server)
            yield self._scene((WEST, EAST), "server killed (-9) in mid-sync, and restarted")
        else:
            await self._meet(WEST, EAST)
            yield self._scene((WEST, EAST), "west and east meet; central is away")

        await self._meet(CENTRAL, EAST)
        yield self._scene((CENTRAL, EAST), "central is back, late; west has gone")

        await self._meet(WEST)
        yield self._scene((WEST,), "west looks in once more")

    def _scene(self, online: tuple[str, ...], story: str) -> Scene:
        return Scene(online, dict(self._events), story)

    def _node(self, office: str, *, online: bool, observer: Observer | None = None) -> SyncNode:
        return SyncNode(
            office,
            store=self.shelf.place(office),
            topics=[self._topic],
            connectors=[self._url] if online else [],
            projections=[self._model(office)] if self.shelf.table else [],
            observer=observer,
            packing="batch",
        )

    def _model(self, office: str) -> Projection:
        return offices.AirportsPerState(self._topic, self.shelf.table_of(office), self.shelf.placeholders)

    async def _edit(self, office: str, edits: Sequence[offices.Edit]) -> None:
        await asyncio.sleep(PAUSE_S)
        await self._write(office, offices.edited(self._topic, edits, self.register))

    async def _write(self, office: str, drafts: Sequence[Draft]) -> None:
        """Offline."""
        async with self._node(office, online=False) as node:
            await node.append_many(drafts)
            await self._count(node)
        self.written.update((draft.id or "", encode_payload(draft.data)) for draft in drafts)

    async def _count(self, node: SyncNode) -> None:
        self._events[node.node_id] = len((await node.store.summary(self._topic)).seen)

    async def _meet(self, *names: str, accident: Server | None = None) -> None:
        """Online, until these offices hold the same."""
        under_way = UnderWay()
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(self._node(name, online=True, observer=under_way)) for name in names
            ]
            breaking = asyncio.create_task(_kill_and_restart(accident, under_way)) if accident else None
            try:
                for _ in range(MEETINGS_MAX):
                    complete = all(await asyncio.gather(*map(_sync, nodes)))
                    alike = len({await node.digest(self._topic) for node in nodes}) == 1
                    if complete and alike and (breaking is None or breaking.done()):
                        break
                    if not complete:
                        await asyncio.sleep(0.05)
                else:
                    raise Timeout(f"{' and '.join(names)} did not find together in {MEETINGS_MAX} meetings")
            finally:
                if breaking is not None:
                    await breaking
            for node in nodes:
                await self._count(node)

    # --- the ending --------------------------------------------------------------------------------------------------

    async def ending(self) -> Ending:
        """Ask every office for its answers, and then count in the stores."""
        answers = await asyncio.gather(*map(self._answers, OFFICES))
        counted = await audit({each: self.shelf.look(each) for each in OFFICES}, self._topic, self.written)
        conflicts, model = answers[0]
        return Ending(counted, conflicts, model, all(each == answers[0] for each in answers))

    async def _answers(self, office: str) -> tuple[list[Answered], dict[str, int]]:
        async with self._node(office, online=False) as node:
            model = await self._read_model(node)
            heads = await heads_by_aggregate(node.store, self._topic, lambda done: None)
            answered = []
            for airport in sorted(name for name, found in heads.items() if len(found) > 1):
                events = await node.store.aggregate(self._topic, airport)
                merged = resolve(offices.FieldByField(), conflict_of(self._topic, airport, events))
                answered.append(Answered(airport, await node.resolve(self._topic, airport), merged))
            return answered, model

    async def _read_model(self, node: SyncNode) -> dict[str, int]:
        """What the projection made, or, where a store has no SQL, the same counted from the node's answers."""
        if not self.shelf.table:
            names = {stored.event.aggregate_id async for stored in node.log(self._topic)}
            return dict(offices.per_state([(await node.resolve(self._topic, name)).data for name in names]))
        await node.project()
        async with node.store.transaction() as tx:
            rows = await tx.execute(
                f"SELECT state, airports FROM {self.shelf.table_of(node.node_id)} WHERE airports > 0"
            )
        return dict(rows)


class UnderWay:
    """An observer that waits for the first thing to be sent."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        """Nothing is traced."""
        return nullcontext("")

    def observe(self, detail: Detail) -> None:
        """One thing that happened."""
        if isinstance(detail, Published) and detail.events:
            self.sent.set()


async def _kill_and_restart(server: Server, under_way: UnderWay) -> None:
    await under_way.sent.wait()
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(DOWN_S)
    await asyncio.to_thread(server.start)


async def _sync(node: SyncNode) -> bool:
    """Whether the node is complete now; being cut off is not the end."""
    try:
        return (await node.sync(timeout_s=10.0)).complete
    except ConnectorError as error:
        if not error.retryable:
            raise
        return False
