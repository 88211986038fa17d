"""Several observers where one is expected; what one of them raises takes nothing from the others."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from types import TracebackType

from synckit_streams.ports.telemetry import Detail, Observer

logger = logging.getLogger("synckit_streams")


class Observers:
    """All of them are told everything, in the order given.

    The first one that has a trace context to store gives it; the events of a node can carry only one.
    """

    def __init__(self, *observers: Observer) -> None:
        self.all = observers
        self._blamed: set[tuple[int, type[Exception]]] = set()

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        """See `Observer`."""
        return _Operations(self, name, node)

    def observe(self, detail: Detail) -> None:
        """See `Observer`."""
        for observer in self.all:
            try:
                observer.observe(detail)
            except Exception as error:  # noqa: BLE001 - logged; the others are to hear of it all the same
                self.blame(observer, error)

    def blame(self, observer: Observer, error: Exception) -> None:
        """Log what one of them raised, once a kind."""
        if (id(observer), type(error)) not in self._blamed:
            self._blamed.add((id(observer), type(error)))
            logger.error("the observer %r raised; this is logged once", observer, exc_info=error)


class _Operations:
    def __init__(self, observers: Observers, name: str, node: str) -> None:
        self._observers = observers
        self._name = name
        self._node = node
        self._entered: list[tuple[Observer, AbstractContextManager[str]]] = []

    def __enter__(self) -> str:
        traceparent = ""
        for observer in self._observers.all:
            try:
                context = observer.operation(self._name, node=self._node)
                given = context.__enter__()
                self._entered.append((observer, context))
                traceparent = traceparent or given
            except Exception as error:  # noqa: BLE001 - as above
                self._observers.blame(observer, error)
        return traceparent

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for observer, context in reversed(self._entered):
            try:
                context.__exit__(kind, error, trace)
            except Exception as raised:  # noqa: BLE001 - as above
                if raised is not error:
                    self._observers.blame(observer, raised)
