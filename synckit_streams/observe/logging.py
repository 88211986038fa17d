"""Every record as one line of the log, for whoever has nothing else to look at; and lines of JSON, for programs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

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


class JsonLines(logging.Formatter):
    """Each record of a log as one line of JSON: time, level, logger, message; and error and detail if there are any.

    Args:
        fields: What stands in every line besides, for example `worker="2"`.
    """

    def __init__(self, **fields: str) -> None:
        super().__init__()
        self._fields = fields
        self._encode = msgspec.json.Encoder(enc_hook=str).encode

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        detail = getattr(record, "detail", None)
        if isinstance(detail, Detail):
            line["detail"] = msgspec.structs.asdict(detail)
        return self._encode(line).decode()
