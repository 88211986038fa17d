"""What every test has: the marker `nats` where a real server is used, and how much work a slow test may do."""

from __future__ import annotations

import os

import hypothesis
import pytest

LONG = os.environ.get("SYNCKIT_TEST_LONG") == "1"

# No deadline: on two shared cores a single example may take as long as the machine likes; the test's own limit holds.
hypothesis.settings.register_profile("bounded", deadline=None, print_blob=True)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=5_000)
hypothesis.settings.load_profile("long" if LONG else "bounded")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"nats_server", "nats_url", "own_nats_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.nats)


@pytest.fixture(scope="session")
def long_run() -> bool:
    """True under `make test-long`: a slow test does as many rounds as it has patience for."""
    return LONG
