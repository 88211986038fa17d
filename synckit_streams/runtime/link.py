"""One connection between the core and a broker: receive, step, commit, then acknowledge; and send what is asked for.

A `Session` joins the logs of a node's topics (looking whether they are still the ones that were read), reads them from
the store's own offsets, listens to the peers' digests and does what the replica posts. Everything it has promised is in
the store; so a session that fails is simply ended, and the next one begins where the store stands. When it begins and
ends, and what it is for, is decided by `meeting`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from synckit_streams.errors import (
    ConnectorError,
    FrameMalformed,
    Timeout,
    Unavailable,
)
from synckit_streams.model.clock import HybridTime
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import AppendResult, PlaceRun
from synckit_streams.ports import telemetry
from synckit_streams.ports.connector import Bounds, Connector, Delivery
from synckit_streams.ports.store import SharedPlaces
from synckit_streams.runtime.driver import Driver, logger
from synckit_streams.runtime.echoes import Echoes
from synckit_streams.runtime.envelope import fingerprint, traces_of
from synckit_streams.runtime.intake import Intake
from synckit_streams.runtime.membership import Membership, places_of, witness_beyond
from synckit_streams.runtime.retention import Retention
from synckit_streams.runtime.sending import Sending
from synckit_streams.sync import protocol

MESSAGES_MAX = 1_000
"""Most messages in one batch from the connector."""
COMMIT_BYTES = 4 * 1024 * 1024
"""What is read is committed when there are so many bytes of it, or `Settings.batch_events` events."""

_T = TypeVar("_T")
Work = protocol.Publish | protocol.Announce | protocol.Look


def link_name(connector: Connector, url: str) -> str:
    """What offsets are kept under: the URL without credentials and options."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else type(connector).__name__


class Counts:
    """What a link did since somebody last asked."""

    def __init__(self) -> None:
        self.pushed = 0
        self.pulled = 0
        self.conflicts: set[tuple[str, str]] = set()


class Link:
    """A connector with its name, and what was counted on it.

    Args:
        name: See `link_name`.
        connector: Made; every session opens it, which costs nothing when it is open already.
        driver: Of the node.
    """

    def __init__(self, name: str, connector: Connector, driver: Driver) -> None:
        self.name = name
        self.connector = connector
        self.driver = driver
        self.counts = Counts()
        self.session: Session | None = None
        self.failures = 0
        """How often in a row it could not be used."""
        self.again_s = 0.0
        """When it is to be tried again, by the loop's clock."""
        self._marks: dict[str, int] = {}
        """Per reader, up to where it is known what other processes have read."""
        driver.links[name] = self

    def post(self, effect: Work) -> None:
        """See `Outbox`."""
        if self.session is not None:
            self.session.post(effect)
        elif isinstance(effect, protocol.Publish):
            self.driver.replica.step(protocol.Failed(effect.link, effect.topic, effect.events))

    async def learn(self, topic: str) -> None:
        """See `Outbox`."""
        channel = self.driver.replica.channel(self.name, topic)
        if channel is None or not channel.joined or not isinstance(self.driver.store, SharedPlaces):
            return
        runs: list[tuple[int, PlaceRun]] = []
        for partition in channel.identity:
            runs += await self.runs(protocol.reader_name(self.name, topic, partition), partition)
        await self.driver.give(protocol.Learned(self.name, topic, runs))

    async def runs(self, reader: str, partition: int, *, anew: bool = False) -> list[tuple[int, PlaceRun]]:
        """Where this reader has read what, in whichever process; what is new since it was asked last, or all of it."""
        store = self.driver.store
        if not isinstance(store, SharedPlaces):
            return [(partition, run) for run in await store.runs(reader)] if anew else []
        found, self._marks[reader] = await store.runs_since(reader, 0 if anew else self._marks.get(reader, 0))
        return [(partition, run) for run in found]

    async def close(self) -> None:
        """Let go of the broker; also of one that was never reached."""
        await self.connector.close()

    def take_counts(self) -> Counts:
        """What was counted, and begin anew."""
        counts, self.counts = self.counts, Counts()
        return counts


class Session:
    """See the module's text.

    Args:
        link: Over what.
        changed: Set whenever somebody who waits for the session should look again.
        publish: False only reads (`pull`).
        timeout_s: Longest time without any progress.
    """

    def __init__(self, link: Link, changed: asyncio.Event, *, publish: bool = True, timeout_s: float = 30.0) -> None:
        self.link = link
        self.driver = link.driver
        self.progress = 0
        self.failure: BaseException | None = None
        """What ended it."""
        self.topics = self.driver.settings.topics
        """As they are now; what is sent beside from later on is for the next session."""
        self._publish = publish
        self._timeout_s = timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox: asyncio.Queue[Work] = asyncio.Queue()
        self._announcing = 0
        self._listened: set[str] = set()
        self._firsts: set[tuple[type[Work], str]] = set()
        self._echoes = Echoes()
        self._sending = Sending(link, self._echoes, self._give, self._progressed)
        self.retention = Retention(link.name, link.connector, link.driver)
        self._changed = changed
        self._noted = (-1, 0.0)
        """The last progress that was seen, and when that was."""

    # --- beginning and ending ----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Join every topic's log, and begin to read, to listen and to send. Whoever fails here is to be ended.

        Raises:
            ConnectorError: the broker cannot be reached, or does not answer.
            StoreError: the store cannot say what it holds.
        """
        link, driver = self.link, self.driver
        await driver.on_track()
        await self._answer(link.connector.open())
        link.session = self
        await self._give(protocol.Mute(link.name, not self._publish or driver.settings.pull_only))
        for topic in self.topics:
            await self._join(topic)
        self._observe_link(up=True)
        self._start(self._work())
        for topic in self.topics:
            self._start(self._read(topic))
            self._start(self._listen(topic))
        await self._give(protocol.Meet(link.name))

    async def end(self) -> None:
        """Stop whatever it is doing; what the store has begun is finished."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def leave(self, error: BaseException | None) -> None:
        """Let the replica know that it is over, and the observer, if it is because of the broker."""
        for task in self._tasks:
            task.cancel()
        if self.link.session is self:
            self.link.session = None
            self.driver.replica.step(protocol.Left(self.link.name))
        if isinstance(error, ConnectorError):
            # The connector stays open: it comes back by itself, and closing it could be the end of a broker in memory.
            self._observe_link(up=False, reason=str(error))

    def _observe_link(self, *, up: bool, reason: str = "") -> None:
        node = self.driver.settings.node
        self.driver.observe(telemetry.Link(node=node, connector=self.link.name, up=up, reason=reason))

    def _heed(self, task: asyncio.Task[None]) -> None:
        """A task that fails ends the session."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.failure = self.failure or error
            self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._heed)
        self._tasks.append(task)

    async def _answer(self, asked: Awaitable[_T]) -> _T:
        """What the broker answers.

        Raises:
            Timeout: it does not.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asked
        except TimeoutError:
            raise self._no_progress() from None

    def _no_progress(self) -> Timeout:
        return Timeout(f"{self.link.name} made no progress for {self._timeout_s:g} s")

    async def _give(self, given: protocol.Input) -> AppendResult | None:
        result = await self.driver.give(given)
        self._changed.set()
        return result

    async def _join(self, topic: str) -> None:
        """Find the topic's logs, and see whether they are the ones that the store remembers."""
        connector, store, name = self.link.connector, self.driver.store, self.link.name
        bounds = await self._answer(connector.bounds(topic))
        stored: dict[int, Offset] = {}
        witness: dict[int, bool | None] = {}
        runs: list[tuple[int, Any]] = []
        for partition, log in bounds.items():
            reader = protocol.reader_name(name, topic, partition)
            offset = await store.offset(reader)
            runs += await self.link.runs(reader, partition, anew=self.driver.replica.needs_places(name, topic))
            if offset is None:
                continue
            stored[partition] = offset
            witness[partition] = await self._witness(topic, partition, offset, log)
        if self.driver.settings.group:
            channel = self.driver.replica.channel(name, topic)
            places = channel.places if channel is not None and channel.loaded else places_of(runs)
            witness |= await self._answer(witness_beyond(connector, topic, bounds, stored, places))
        await self._give(protocol.Joined(name, topic, bounds, stored, witness, runs))

    async def _witness(self, topic: str, partition: int, offset: Offset, log: Bounds) -> bool | None:
        """Whether the message that was read last is still there, and the same."""
        if offset.log != log.identity or not log.first <= offset.position < log.end:
            return None
        message = await self._answer(self.link.connector.peek(topic, partition, offset.position))
        return None if message is None else fingerprint(message) == offset.fingerprint

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, topic: str) -> None:
        channel = self.driver.replica.channel(self.link.name, topic)
        assert channel is not None
        connector, group = self.link.connector, self.driver.settings.group
        if group:
            await Membership(self, connector, channel, group, MESSAGES_MAX).run()
        else:
            identity = dict(channel.identity)

            async def take(intake: Intake) -> None:
                last = intake.taken[-1]
                offset = Offset(identity.get(last.partition, ""), last.position, fingerprint(last.message))
                await self.commit(topic, intake, offset)

            start = dict(channel.position)
            async with connector.receive(topic, start=start, batch_max=MESSAGES_MAX) as batches:
                await self.consume(topic, batches, take)
        raise Unavailable(f"{self.link.name} ended the stream of {topic!r}")

    async def consume(
        self, topic: str, batches: AsyncIterator[Sequence[Delivery]], take: Callable[[Intake], Awaitable[None]]
    ) -> None:
        """See `Consumer`."""
        # While one batch is being committed, the next one is decoded.
        committing: asyncio.Task[None] | None = None
        try:
            async for batch in batches:
                for intake in self._intakes(topic, batch):
                    if committing is not None:
                        await committing
                    committing = asyncio.ensure_future(take(intake))
                    # Heard at once, and not when the next batch comes: that may be never.
                    committing.add_done_callback(self._heed)
                    await asyncio.sleep(0)
            if committing is not None:
                await committing
        finally:
            # What the store has begun it finishes, whether or not anybody waits for it.
            if committing is not None:
                await asyncio.wait([committing])

    def _intakes(self, topic: str, batch: Sequence[Delivery]) -> Iterator[Intake]:
        """A batch in parts, one for each commit."""
        intake: Intake | None = None
        for delivery in batch:
            if intake is None or delivery.partition != intake.partition:
                if intake is not None:
                    yield intake
                intake = Intake(self.link.name, topic, delivery.partition, self._echoes)
            intake.add(delivery)
            if intake.events >= self.driver.settings.batch_events or intake.bytes >= COMMIT_BYTES:
                yield intake
                intake = None
        if intake is not None:
            yield intake

    async def commit(self, topic: str, intake: Intake, offset: Offset | None) -> None:
        """See `Consumer`."""
        started = asyncio.get_running_loop().time()
        found = intake.arrivals
        driver = self.driver
        if driver.settings.push_only or topic in driver.settings.outlets:
            nodes = driver.replica.nodes
            found = [each for each in found if each.event is None or node_of(each.event.origin) in nodes]
        with driver.operation("receive"):
            given = protocol.Received(self.link.name, topic, intake.partition, found, offset, intake.echoes())
            result = await self._give(given)
            assert result is not None
            self.progress += 1
            self._sending.committed.set()
            self._count(topic, intake, result, asyncio.get_running_loop().time() - started)

    async def stand(self, topic: str, partition: int, offset: Offset) -> None:
        """See `Consumer`."""
        if self.driver.store.features.shared:
            # Somebody else of the group has read some of it, and committed it before he acknowledged it. Whoever moved
            # on without it would say that it lacks what lies before its place, and peers would send it again.
            summary = await self.driver.store.summary(topic)
            await self.link.learn(topic)
            await self._give(protocol.Opened({topic: summary}))
        await self._give(protocol.Received(self.link.name, topic, partition, (), offset))
        self.progress += 1

    def _count(self, topic: str, intake: Intake, result: AppendResult, duration: float) -> None:
        driver, node = self.driver, self.driver.settings.node
        counts = self.link.counts
        stored = [each.event for each in result.stored]
        origins = Counter([event.origin for event in stored])
        counts.pulled += sum(times for origin, times in origins.items() if node_of(origin) != node)
        counts.conflicts.update(result.conflicts)
        latest = max([event.at_packed for event in stored], default=0)
        ahead = HybridTime.from_packed(latest).wall_ms - driver.world.wall_ms()
        traces = traces_of(stored)
        driver.observe(
            telemetry.Received(
                node=node,
                connector=self.link.name,
                topic=topic,
                messages=len(intake.taken),
                bytes=intake.bytes,
                stored=len(stored),
                duplicates=result.duplicates,
                held=len(result.held),
                dropped=len(result.dropped),
                quarantined=len(result.quarantined),
                skew_ms=max(ahead, 0) if result.stored else 0,
                traceparents=traces[: telemetry.TRACES_MAX],
                traces=len(traces),
                duration_s=duration,
            )
        )

    async def _listen(self, topic: str) -> None:
        async with self.link.connector.listen(topic) as announced:
            async for node, body, age_s in announced:
                if not node:
                    self.progress += topic not in self._listened
                    self._listened.add(topic)
                    self._changed.set()
                elif body and node != self.driver.settings.node:
                    try:
                        digest, seen = protocol.digest_from_bytes(body)
                    except FrameMalformed as error:
                        logger.warning("%s: a digest of %r on %r: %s", self.driver.settings.node, node, topic, error)
                        continue
                    if digest.topic == topic:
                        await self._give(protocol.Heard(self.link.name, digest, seen, int(age_s * 1000)))

    # --- sending -----------------------------------------------------------------------------------------------------

    def post(self, effect: Work) -> None:
        """See `Outbox`."""
        self._outbox.put_nowait(effect)
        self._announcing += isinstance(effect, protocol.Announce)

    async def _work(self) -> None:
        while True:
            effect = await self._outbox.get()
            if isinstance(effect, protocol.Publish):
                await self._sending.send(effect)
            elif isinstance(effect, protocol.Announce):
                body = protocol.digest_bytes(effect.digest)
                await self.link.connector.announce(effect.digest.topic, self.driver.settings.node, body)
                self._announcing -= 1
                self._note(effect, effect.digest.topic)
                await self.retention.trim(effect.digest.topic)
            else:
                bounds = await self.link.connector.bounds(effect.topic)
                self._note(effect, effect.topic)
                known = self.driver.replica.summary(effect.topic).seen
                await self.link.learn(effect.topic)
                await self._give(protocol.Looked(self.link.name, effect.topic, bounds, known))
            self._changed.set()

    def _progressed(self) -> None:
        self.progress += 1

    def _note(self, effect: Work, topic: str) -> None:
        """Progress, the first time for each topic. Digests go on for ever, also while nothing else does."""
        if (first := (type(effect), topic)) not in self._firsts:
            self._firsts.add(first)
            self.progress += 1

    # --- being waited for --------------------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether there is nothing left to do: all read, all sent and read back, nothing owed, all said."""
        return self._heard_and_said() and all(
            self.driver.replica.settled(self.link.name, topic) for topic in self.topics
        )

    def caught_up(self) -> bool:
        """Whether all has been read that was there when it began."""
        channels = [self.driver.replica.channel(self.link.name, topic) for topic in self.topics]
        return all(channel is not None and channel.caught_up for channel in channels)

    def _heard_and_said(self) -> bool:
        return not self._announcing and self._listened.issuperset(self.topics)

    def watch_progress(self) -> None:
        """Fail if there has been no progress for as long as was told; to be called now and then during a meeting."""
        now_s = asyncio.get_running_loop().time()
        seen, since_s = self._noted
        topics = self.topics
        idle = self._heard_and_said() and all(self.driver.replica.idle(self.link.name, topic) for topic in topics)
        if idle or self.progress != seen:  # who is idle waits for what comes by the others
            self._noted = (self.progress, now_s)
        elif now_s - since_s > self._timeout_s:
            self.failure = self.failure or self._no_progress()
            self._changed.set()
