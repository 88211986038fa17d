"""What is written: orders of a shop, 205 bytes each as JSON, spread over many aggregates."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from synckit_streams import Draft

TOPIC = "orders"
PAYLOAD_BYTES = 205
CALL_EVENTS = 1_000
"""Events in one call of `append_many`, and in one call of the others' counterpart."""
EVENTS_PER_AGGREGATE = 10


def payload(number: int) -> dict[str, Any]:
    """One order, as the caller has it: a dict."""
    order: dict[str, Any] = {
        "order": number,
        "customer": f"customer-{number * 7919 % 10_000:05d}",
        "lines": [{"sku": f"A-{number % 977:04d}", "quantity": number % 9 + 1, "price": 19.5 + number % 100}],
        "paid": number % 3 == 0,
        "note": "",
    }
    order["note"] = "x" * (PAYLOAD_BYTES - len(msgspec.json.encode(order)))
    return order


def aggregates(events: int) -> list[str]:
    """The aggregate of each event: each about ten times, in no order."""
    rng = random.Random(59)
    count = max(events // EVENTS_PER_AGGREGATE, 1)
    return [f"order-{rng.randrange(count):07d}" for _ in range(events)]


def calls(events: int, size: int = CALL_EVENTS, *, topic: str = TOPIC) -> Iterator[list[Draft]]:
    """Drafts, so many a call."""
    ids = aggregates(events)
    for start in range(0, events, size):
        yield [
            Draft(topic=topic, type="order.placed", aggregate_id=ids[number], data=payload(number))
            for number in range(start, min(start + size, events))
        ]
