"""A webhook as a source: what comes is in a store before it is answered, and goes on from there.

The inbox takes what comes also while the pipeline is paused or its sink is away, as long as its process runs and there
is room. What was passed on is forgotten. A sender that repeats what was answered too late has the same id again, if it
gives one; the sink knows it.
"""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections import deque
from collections.abc import Mapping

from synckit_streams.connect.queue import Queue
from synckit_streams.connect.record import Portion, Record
from synckit_streams.connect.shape import Shape
from synckit_streams.connect.spec import HttpSource as Spec
from synckit_streams.errors import IdReused, Invalid, StoreError, TooLarge
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX
from synckit_streams.model.event import Offset
from synckit_streams.ports.operation import Hooked

LOOK_S = 1.0
"""After so long without an arrival it is looked whether another process has put something there."""


class Inbox:
    """Takes what comes; see `synckit_streams.ports.operation.Webhook`.

    Args:
        spec: What the pipeline's file says.
        url: Of the store in which it waits.
        pipeline: Whose it is.
    """

    def __init__(self, spec: Spec, url: str, pipeline: str) -> None:
        self._spec = spec
        self._shape = Shape(spec.type, spec.aggregate_id, spec.id)
        self.queue = Queue(url, pipeline, spec.kept_bytes)

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
            await self.queue.put(self._shape.record(body, id))
        except (Invalid, TooLarge) as error:
            return Hooked(400, error.message)
        except IdReused:
            return Hooked(409, "this id came before, with another content, and waits to be passed on")
        except StoreError as error:
            return Hooked(503, error.message)
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
    """Passes on what waits in the inbox.

    Args:
        queue: In which it waits.
        name: For people.
    """

    def __init__(self, queue: Queue, name: str) -> None:
        self._queue = queue
        self._under_way: deque[list[Record]] = deque()
        self.name = name

    async def open(self, position: Offset | None) -> None:
        """See `Source`; what is still in the inbox is the position."""
        await self._queue.open()
        self._queue.rewind()
        self._under_way.clear()

    async def read(self, limit: int) -> Portion | None:
        """See `Source`."""
        records = await self._queue.take(limit)
        if not records:
            return None
        self._under_way.append(records)
        return Portion(records, None)

    async def wait(self) -> None:
        """See `Source`."""
        try:
            async with asyncio.timeout(LOOK_S):
                await self._queue.arrived.wait()
        except TimeoutError:
            return

    async def done(self, portion: Portion) -> None:
        """Forget it."""
        await self._queue.remove(self._under_way[0])
        self._under_way.popleft()

    async def lag(self) -> int | None:
        """See `Source`."""
        return await self._queue.left()

    async def close(self) -> None:
        """The inbox stays open."""
        self._queue.rewind()
