"""Every record as one line of the log, for whoever has nothing else to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from synckit_streams.ports.telemetry import Alarmed, Detail, Link, Synced

_LOUD = (Link, Synced)
"""What happens once a meeting and not once a batch."""


class LoggingObserver:
    """An `Observer` that writes to a logger: alarms as warnings, syncs and links as information, the rest as debugging.

    The line is `name field=value …`; the record itself is `detail` on the log record, for a formatter that wants JSON.

    Args:
        logger: The logger or its name.
    """

    def __init__(self, logger: logging.Logger | str = "synckit_streams.telemetry") -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger

    @contextmanager
    def operation(self, name: str, *, node: str) -> Iterator[str]:
        """See `Observer`. A log needs no more than the records."""
        yield ""

    def observe(self, detail: Detail) -> None:
        """See `Observer`."""
        level = logging.DEBUG
        if isinstance(detail, Alarmed):
            level = logging.WARNING
        elif isinstance(detail, _LOUD):
            level = logging.INFO
        if self._logger.isEnabledFor(level):
            fields = msgspec.structs.asdict(detail)
            fields.pop("traceparents", None)
            line = " ".join(f"{name}={value!r}" for name, value in fields.items())
            self._logger.log(level, "%s %s", type(detail).__name__.lower(), line, extra={"detail": detail})
