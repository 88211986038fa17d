"""A webhook as a source: what comes is in a store before it is answered, and goes on from there.

The inbox is a node's log of its own. It takes what comes also while the pipeline is paused or its sink is away, as long
as its process runs. A sender that repeats what was answered too late has the same id again, if it gives one.
"""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import Mapping

from msgspec.structs import replace

from synckit_streams.connect.log_sources import LOOK_S, LogReader
from synckit_streams.connect.record import Portion, Record
from synckit_streams.connect.shape import Shape
from synckit_streams.connect.spec import HttpSource as Spec
from synckit_streams.connect.writer import node_id_for
from synckit_streams.errors import IdReused, Invalid, StoreError, TooLarge
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX
from synckit_streams.model.event import Offset
from synckit_streams.ports.operation import Hooked
from synckit_streams.runtime.node import SyncNode

TOPIC = "webhook"


class Inbox:
    """Takes what comes; see `synckit_streams.ports.operation.Webhook`.

    Args:
        spec: What the pipeline's file says.
        url: Of the store.
    """

    def __init__(self, spec: Spec, url: str) -> None:
        self._spec = spec
        self._url = url
        self._shape = Shape(spec.type, spec.aggregate_id, spec.id)
        self._node: SyncNode | None = None
        self._turn = asyncio.Lock()
        self._closed = False
        self.arrived = asyncio.Event()
        """Set by whatever comes."""

    async def node(self) -> SyncNode:
        """The inbox itself, opened when it is first needed.

        Raises:
            StoreError: it cannot be opened, or its pipeline has ended.
        """
        async with self._turn:
            if self._closed:
                raise StoreError("this pipeline has ended")
            if self._node is None:
                made = SyncNode(await node_id_for(self._url, ""), store=self._url)
                self._node = await made.open()
            return self._node

    def begin(self) -> None:
        """It may be opened again."""
        self._closed = False

    async def close(self) -> None:
        """Take nothing more."""
        async with self._turn:
            self._closed = True
            node, self._node = self._node, None
            if node is not None:
                await node.close()

    async def __call__(self, headers: Mapping[str, str], body: bytes) -> Hooked:
        """See `Webhook`."""
        if not self._is_allowed(headers, body):
            return Hooked(401, "the signature or the token is missing or wrong")
        if len(body) > PAYLOAD_BYTES_MAX:
            return Hooked(413, f"at most {PAYLOAD_BYTES_MAX} bytes are taken")
        id = headers.get(self._spec.id_header.lower(), "") if self._spec.id_header else str(uuid.uuid4())
        if not id:
            return Hooked(400, f"the header {self._spec.id_header} is missing")
        try:
            record = self._shape.record(body, id)
            node = await self.node()
            await node.append(record.draft(TOPIC))
        except (Invalid, TooLarge) as error:
            return Hooked(400, error.message)
        except IdReused:
            return Hooked(409, "this id came before, with another content")
        except StoreError as error:
            return Hooked(503, error.message)
        self.arrived.set()
        return Hooked(202)

    def _is_allowed(self, headers: Mapping[str, str], body: bytes) -> bool:
        spec = self._spec
        if spec.secret:
            given = headers.get(spec.signature_header.lower(), "").removeprefix("sha256=").lower()
            wanted = hmac.new(spec.secret.encode(), body, "sha256").hexdigest()
            if not hmac.compare_digest(given.encode(), wanted.encode()):
                return False
        if spec.token:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {spec.token}".encode()):
                return False
        return True


class HttpSource:
    """Reads the inbox.

    Args:
        inbox: The webhook's.
        name: For people.
    """

    def __init__(self, inbox: Inbox, name: str) -> None:
        self._inbox = inbox
        self._log: LogReader | None = None
        self.name = name

    async def open(self, position: Offset | None) -> None:
        """See `Source`."""
        node = await self._inbox.node()
        self._log = await LogReader.begin(node.store, TOPIC, position)

    async def read(self, limit: int) -> Portion | None:
        """See `Source`."""
        assert self._log is not None
        self._inbox.arrived.clear()
        portion = await self._log.read(limit)
        if portion is None:
            return None
        # The inbox's topic is none of the record's.
        items = [replace(item, topic="") if isinstance(item, Record) else item for item in portion.items]
        return Portion(items, portion.position)

    async def wait(self) -> None:
        """See `Source`."""
        try:
            async with asyncio.timeout(LOOK_S * 5):
                await self._inbox.arrived.wait()
        except TimeoutError:
            return

    async def done(self, portion: Portion) -> None:
        """The position says it."""

    async def lag(self) -> int | None:
        """See `Source`."""
        assert self._log is not None
        return await self._log.lag()

    async def close(self) -> None:
        """The inbox stays open."""
        self._log = None
