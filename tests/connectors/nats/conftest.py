"""What every test of the NATS connector has."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import pytest


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens to the connection, nothing is logged above debug: being offline is normal."""
    caplog.set_level(logging.DEBUG)
    yield
    said = [each.getMessage() for each in caplog.get_records("call") if each.levelno > logging.DEBUG]
    # asyncio says so whenever a connection that nats-py encrypted is lost; only a change in nats-py could help.
    assert [each for each in said if "eof_received() has no effect when using ssl" not in each] == []
