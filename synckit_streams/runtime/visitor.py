"""Who knocks at the door of a node that has a store open, and hands it work; see `door`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from synckit_streams.errors import FrameMalformed, StoreInUse, Timeout
from synckit_streams.model.event import Draft
from synckit_streams.runtime.door import find_door
from synckit_streams.runtime.errand import (
    REQUEST_BYTES_MAX,
    About,
    Answer,
    AskAbout,
    AskAppend,
    AskSwitch,
    AskSync,
    DraftLine,
    Part,
    Receipt,
    Request,
    decode_answer,
    encode,
)
from synckit_streams.runtime.result import SyncResult
from synckit_streams.runtime.switch import Want

APPEND_BYTES = 1024 * 1024
"""How much is put into one request, if there are many drafts."""
ANSWER_S = 60.0
"""How long to wait for the answer to anything but a sync."""


class Visitor:
    """Hands work to the node that has a store open. Used as `async with await Visitor.knock(path) as node`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def knock(cls, store: Path) -> Visitor | None:
        """None when there is no door, or nobody behind it."""
        path = find_door(store)
        if path is None:
            return None
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=REQUEST_BYTES_MAX)
        except OSError:
            return None
        return cls(reader, writer)

    async def about(self) -> About:
        """Who has the store."""
        return _present((await self._ask(AskAbout(), ANSWER_S)).about)

    async def append(self, drafts: Sequence[Draft]) -> Receipt:
        """Have them written, in one commit for every `APPEND_BYTES` of them.

        Raises:
            IdReused, Invalid, TooLarge, CauseUnknown, …: what the node raised; nothing of that commit was written.
            StoreInUse: the node closed meanwhile; what was answered so far is durable.
        """
        events = fresh = 0
        page: list[DraftLine] = []
        size = 0
        for draft in drafts:
            line = DraftLine.of(draft)
            bytes_more = len(encode(line))
            if page and size + bytes_more > APPEND_BYTES:
                receipt = _present((await self._ask(AskAppend(page), ANSWER_S)).receipt)
                events, fresh, page, size = events + receipt.events, fresh + receipt.fresh, [], 0
            page.append(line)
            size += bytes_more
        if page:
            receipt = _present((await self._ask(AskAppend(page), ANSWER_S)).receipt)
            events, fresh = events + receipt.events, fresh + receipt.fresh
        return Receipt(events, fresh)

    async def sync(self, *, timeout_s: float = 30.0) -> SyncResult:
        """Have the node meet its peers; takes as long as it takes.

        Raises:
            Unavailable, Timeout, …: what the node raised.
            StoreInUse: the node closed meanwhile.
        """
        return _present((await self._ask(AskSync(timeout_s), None)).synced).result()

    async def switch(self, projections: Sequence[str], what: Want, *, position: int = 0) -> None:
        """Have projections paused, resumed, rebuilt or made empty.

        Raises:
            StoreError: what the node raised.
        """
        await self._ask(AskSwitch(list(projections), what, position), ANSWER_S)

    async def _ask(self, request: Request, within_s: float | None) -> Answer:
        line = b""
        try:
            async with asyncio.timeout(within_s):
                with suppress(OSError):  # refused before it was read: the answer says why
                    self._writer.write(encode(request) + b"\n")
                    await self._writer.drain()
                with suppress(OSError):
                    line = await self._reader.readline()
        except TimeoutError:
            raise Timeout(f"the node that has the store open did not answer within {within_s:g} s") from None
        if not line.endswith(b"\n"):
            raise StoreInUse(
                "the node that had the store open closed before it answered",
                hint="run the command again: whatever was done is not done twice",
            )
        answer = decode_answer(line)
        if answer.error is not None:
            raise answer.error.error()
        return answer

    async def close(self) -> None:
        """Go away."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _present(part: Part | None) -> Part:
    if part is None:
        raise FrameMalformed("the node answered something else than was asked", hint="is it another release?")
    return part
