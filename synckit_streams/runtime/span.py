"""Several pages of the log in one transaction of a projection: how far they go, and how a streamed one takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from synckit_streams.model.event import Offset, Stored
from synckit_streams.ports.projection import AnyProjection, Batch
from synckit_streams.ports.telemetry import TRACES_MAX
from synckit_streams.runtime.envelope import traces_of

SPAN_EVENTS, SPAN_S = 10_000, 0.05
"""Pages share a transaction until they come to so many events or seconds: a commit costs as much as hundreds of events,
and whoever else wants to write waits meanwhile."""


class Span:
    """How far one transaction of a projection has come.

    Args:
        offset: Where it began, and then of the last event that was read.
        end: Of the log, when it began.
        lasts_s: After so many seconds it takes no further page, unless its pages are streamed.
    """

    def __init__(self, offset: Offset, end: int, *, lasts_s: float = SPAN_S) -> None:
        self.offset = offset
        self.lasts_s = lasts_s
        self.pages = 0
        self.read = 0
        self.wanted = 0
        self.traces = 0
        self.traceparents: list[str] = []
        self._end = end

    @property
    def more(self) -> bool:
        """Whether the log goes on."""
        return self.offset.position < self._end

    def advance(self, page: Sequence[Stored], wanted: Sequence[Stored]) -> None:
        """A page was read, of which these were wanted."""
        self.offset = page[-1].offset
        self.pages += 1
        self.read += len(page)
        self.wanted += len(wanted)
        traces = traces_of([each.event for each in wanted])
        self.traces += len(traces)
        self.traceparents += traces[: TRACES_MAX - len(self.traceparents)]


class Pages:
    """The pages of one transaction, as a streamed projection takes them: one at a time is in memory.

    Args:
        first: Is there already.
        rest: Are read when they are asked for.
    """

    def __init__(self, first: Batch, rest: AsyncIterator[Batch]) -> None:
        self._first: Batch | None = first
        self._rest = rest

    @property
    def taken(self) -> bool:
        """Whether any was."""
        return self._first is None

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> Batch:
        if self._first is None:
            return await anext(self._rest)
        first, self._first = self._first, None
        return first


def is_streamed(projection: AnyProjection) -> bool:
    """Whether it takes the pages of a transaction itself."""
    return getattr(projection, "streamed", False)
