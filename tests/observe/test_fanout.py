"""Several observers, observers that raise, and the log as an observer."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.observe.fanout import Observers
from synckit_streams.observe.logging import LoggingObserver
from synckit_streams.ports.telemetry import Alarmed, Appended, Detail, Link, Observer, Received

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Notes:
    """Keeps what it was told, and gives a trace context if it has one."""

    def __init__(self, traceparent: str = "") -> None:
        self.details: list[Detail] = []
        self.operations: list[str] = []
        self.traceparent = traceparent

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        return self._noted(name, node)

    @contextmanager
    def _noted(self, name: str, node: str) -> Iterator[str]:
        self.operations.append(f"{name} {node}")
        try:
            yield self.traceparent
        finally:
            self.operations.append(f"end of {name}")

    def observe(self, detail: Detail) -> None:
        self.details.append(detail)


class Raises(Notes):
    """Raises wherever it is told to, and otherwise does as it should."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        if self.where == "operation":
            raise RuntimeError("no operation")
        return self._wrong()

    @contextmanager
    def _wrong(self) -> Iterator[str]:
        if self.where == "enter":
            raise RuntimeError("no beginning")
        yield {"text": "x" * 300, "type": 7}.get(self.where, "")  # type: ignore[misc]
        if self.where == "exit":
            raise RuntimeError("no end")

    def observe(self, detail: Detail) -> None:
        if self.where == "observe":
            raise RuntimeError("nothing to see")


async def main_job(observer: Observer) -> str:
    """One event from a to b; gives the trace context that it carries."""
    broker = f"memory://{uuid.uuid4().hex}"
    async with (
        SyncNode("a", store="memory:", connectors=[broker], topics=["t"], observer=observer) as a,
        SyncNode("b", store="memory:", connectors=[broker], topics=["t"], observer=observer) as b,
    ):
        for n in range(3):
            await a.append(Draft("t", "made", f"x{n}"))
        assert (await a.sync()).complete
        assert (await b.sync()).events_pulled == 3
        (event,) = await b.aggregate("t", "x0")
        return event.traceparent


@pytest.mark.parametrize("where", ["operation", "enter", "exit", "observe", "text", "type"])
async def test_an_observer_that_raises_breaks_no_node(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it does wrong, events are written, sent and received; it is logged once a node and kind."""
    assert await main_job(Raises(where)) == ""
    blamed = [record for record in caplog.records if "observer raised" in record.getMessage()]
    assert len(blamed) == 2  # one for each node
    assert all(record.exc_info for record in blamed)


@pytest.mark.parametrize("where", ["operation", "enter", "exit", "observe"])
async def test_an_observer_that_raises_takes_nothing_from_the_others(where: str) -> None:
    first, last = Notes(), Notes(CONTEXT)
    assert await main_job(Observers(first, Raises(where), last)) == CONTEXT
    assert [type(detail) for detail in first.details] == [type(detail) for detail in last.details]
    assert {Appended, Received, Link} <= {type(detail) for detail in first.details}
    assert first.operations == last.operations
    assert first.operations[:4] == ["append a", "end of append"] * 2
    assert first.operations.count("sync b") == 1


def test_the_first_trace_context_is_the_one() -> None:
    """And every observer is entered, also those behind it."""
    notes = [Notes(), Notes(CONTEXT), Notes("00-other")]
    with Observers(*notes).operation("append", node="a") as traceparent:
        assert traceparent == CONTEXT
    assert all(each.operations == ["append a", "end of append"] for each in notes)


def test_an_error_of_the_operation_goes_through() -> None:
    """Observers see it, and cannot swallow it."""
    notes = Notes()
    with pytest.raises(KeyError), Observers(notes).operation("append", node="a"):
        raise KeyError("x")
    assert notes.operations == ["append a", "end of append"]


def test_the_log_has_a_line_for_each_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "synckit_streams.telemetry")
    observer = LoggingObserver()
    observer.observe(Appended(node="a", topics=("t",), events=2, duration_s=0.5))
    observer.observe(Alarmed(node="a", kind="twins", topic="t", evidence="x"))
    observer.observe(Link(node="a", connector="memory://m", up=False, reason="gone"))
    with observer.operation("append", node="a") as traceparent:
        assert traceparent == ""
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "appended node='a' topics=('t',) events=2 duration_s=0.5"),
        ("WARNING", "alarmed node='a' kind='twins' topic='t' evidence='x'"),
        ("INFO", "link node='a' connector='memory://m' up=False reason='gone'"),
    ]
    assert caplog.records[0].__dict__["detail"] == Appended(node="a", topics=("t",), events=2, duration_s=0.5)
