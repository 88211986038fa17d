"""Readers that need no state on the server: of a topic, from any position, and of its digests.

Each is an ephemeral pull consumer without acknowledgements, that starts behind the last message received, and is made
anew from there whenever it was lost or skipped something. Before that we look whether that last message is still what
it was, by its timestamp; if not, the log was put back, and the reader is told so.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import unquote

from synckit_connectors.nats_api import NANO, Answer, nanoseconds, refusal
from synckit_connectors.nats_link import Link, Reached
from synckit_connectors.nats_names import DIGEST_STREAM, NODE_HEADER, message, stream_name
from synckit_connectors.nats_pull import Got, Pull
from synckit_connectors.nats_wire import Wire
from synckit_streams.errors import ConnectorError
from synckit_streams.ports.connector import Announced, Delivery

READER_IDLE_S = 60.0
"""For how long the server keeps a consumer that asks for nothing. One that was forgotten is made anew."""


class Reader(Pull):
    """With a consumer of its own."""

    def __init__(self, link: Link, stream: str, batch_max: int) -> None:
        super().__init__(link, stream, batch_max)
        # Asked for ahead of the reader: enough to hide a round trip, a few batches at most.
        self._count_max = max(2 * self._batch_max, 64)
        self._number = 0
        """Of the last message, as the consumer counts."""

    def _start(self) -> dict[str, object]:
        """What a new consumer reads, and from where."""
        raise NotImplementedError

    def _created(self, answer: Answer) -> None:
        """The consumer was made."""

    async def _begin(self, wire: Wire) -> None:
        self._consumer, self._number = "sk" + secrets.token_hex(8), 0
        config = {
            "name": self._consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(READER_IDLE_S * NANO),
        }
        answer = await wire.ask(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "config": config | self._start()},
        )
        if answer.error is not None:
            raise refusal(answer.error, f"reading {self._stream}")
        self._behind = answer.num_pending
        self._created(answer)

    async def detach(self) -> None:
        wire, consumer = self._wire, self._consumer
        self._consumer = ""
        await super().detach()
        if wire is not None and consumer:
            # Without waiting for an answer: if it gets lost, the server forgets an idle consumer by itself.
            with suppress(ConnectorError):
                await wire.publish(f"{self._link.options.api}.CONSUMER.DELETE.{self._stream}.{consumer}")

    def _wanted(self) -> int:
        count = self._count_max - self._asked
        return 0 if count < self._count_max // 2 or len(self._got) >= self._count_max else count

    def _note(self, got: Got) -> bool:
        if self._broken or got.consumer != self._consumer:
            return False  # a new consumer brings it again
        self._count(got)
        if got.number != self._number + 1:
            self.break_off(f"message {self._number + 1} of the consumer was skipped")
            return False
        self._number += 1
        return True


class LogReader(Reader):
    """Reads a topic from a position."""

    def __init__(self, link: Link, stream: str, batch_max: int, last: int) -> None:
        super().__init__(link, stream, batch_max)
        self._last = last
        self._reached = Reached(link, stream)

    async def open(self) -> None:
        """Note what is read, and make the consumer."""
        created = (await self._link.stream(self._stream)).created
        stored = await self._link.stored(self._stream, self._last) if self._last > 0 else None
        self._reached.note(created, self._last, nanoseconds(stored.time) if stored is not None else 0)
        await self.attach()

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.batch()
        if not batch:
            raise StopAsyncIteration
        return [Delivery(message(got.headers, got.body), 0, got.position) for got in batch]

    def _start(self) -> dict[str, object]:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": self._last + 1}

    def _note(self, got: Got) -> bool:
        if not super()._note(got) or got.position <= self._last:
            return False
        self._last = self._reached.position = got.position
        self._reached.at_ns = got.at_ns
        return True

    async def _changed(self) -> str:
        return await self._reached.changed()


class DigestReader(Reader):
    """Reads the last digest of each node of a topic, and then the new ones."""

    def __init__(self, link: Link, topic: str) -> None:
        super().__init__(link, DIGEST_STREAM, 64)
        self._filter = f"{DIGEST_STREAM}.{stream_name(topic)}.*"
        self._announcements: deque[Announced] = deque()
        self._caught_up = False
        self._created_ns = 0
        self._created_at = 0.0
        self._creations = 0

    def __aiter__(self) -> DigestReader:
        return self

    async def __anext__(self) -> Announced:
        while not self._announcements:
            if not self._caught_up and not self._got and not self._behind and not self._ended:
                self._caught_up = True
                return Announced("", b"", 0.0)
            batch = await self.batch()
            if not batch:
                raise StopAsyncIteration
            self._caught_up = False
            self._announcements.extend(each for got in batch if (each := self._announced(got)) is not None)
        return self._announcements.popleft()

    def _start(self) -> dict[str, object]:
        return {"deliver_policy": "last_per_subject", "filter_subject": self._filter}

    def _created(self, answer: Answer) -> None:
        # Both by the server's clock, whatever ours says.
        self._created_ns = nanoseconds(answer.ts or answer.created)
        self._created_at = self._loop.time()
        self._creations += 1

    def _announced(self, got: Got) -> Announced | None:
        node = unquote(got.headers.get(NODE_HEADER, ""))
        retained = got.at_ns <= self._created_ns
        # What was taken back before we listened is not there; while we listened and were cut off, it is news.
        if not node or (retained and not got.body and self._creations == 1):
            return None
        age_s = (self._created_ns - got.at_ns) / NANO + self._loop.time() - self._created_at if retained else 0.0
        return Announced(node, got.body, age_s)
