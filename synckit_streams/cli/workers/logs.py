"""The log of a process that runs a service: lines on standard error, which say which worker wrote them."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from synckit_streams.observe.logging import JsonLines

LogLevel = Literal["debug", "info", "warning", "error"]

_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}


def log_to_stderr(who: str, level: LogLevel, *, json: bool, colours: bool) -> None:
    """From now on, everything that this process logs.

    Args:
        who: "supervisor", or "worker-2".
        level: The least that is written.
        json: Lines of JSON.
        colours: Warnings and errors are coloured.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker=who) if json else _Lines(who, colours=colours))
    root = logging.getLogger()
    for each in root.handlers[:]:
        root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # What a request brought is counted; that a server began or ended is said by whoever began or ended it. A client of
    # Kafka tells of every consumer that it makes, and an idle node makes one a second to look at the log's end.
    for server_or_client in ("uvicorn", "aiokafka"):
        logging.getLogger(server_or_client).setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


class _Lines(logging.Formatter):
    """`14:02:11.123 warning  worker-2  synckit_streams.runtime  what happened`."""

    default_time_format = "%H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self, who: str, *, colours: bool) -> None:
        super().__init__(f"%(asctime)s %(shown)s {who}  %(name)s  %(message)s")
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        level = f"{record.levelname.lower():<8}"
        colour = _COLOURS.get(record.levelno) if self._colours else None
        record.shown = f"\x1b[{colour}m{level}\x1b[0m" if colour else level
        return super().format(record)
