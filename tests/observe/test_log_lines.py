"""A log as lines of JSON."""

from __future__ import annotations

import io
import json
import logging

from synckit_streams.observe.logging import JsonLines, LoggingObserver
from synckit_streams.ports.telemetry import Alarmed


def test_a_line_has_everything_that_a_record_has() -> None:
    """Also a traceback, a telemetry record, and text that would break a line."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines(worker="worker-2"))
    logger = logging.getLogger("shop.test-log-lines")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.info("two\nlines of %s", "text")
    try:
        raise ValueError("no such order")
    except ValueError:
        logger.exception("failed")
    LoggingObserver(logger).observe(Alarmed(node="till", kind="void", topic="orders", evidence="7"))
    plain, failed, alarm = map(json.loads, out.getvalue().splitlines())
    assert (plain["level"], plain["logger"], plain["message"], plain["worker"]) == (
        *("info", logger.name, "two\nlines of text", "worker-2"),
    )
    assert plain["time"].endswith("+00:00")
    assert "ValueError: no such order" in failed["error"]
    assert alarm["detail"] == {"node": "till", "kind": "void", "topic": "orders", "evidence": "7"}
