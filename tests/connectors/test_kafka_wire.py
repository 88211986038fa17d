"""Records: the quick way for ordinary ones gives what the careful one does."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner

from synckit_connectors import kafka_wire
from synckit_streams.errors import Rejected
from synckit_streams.ports.connector import Message

NAMES = ["ce-specversion", "ce-type", "ce-datacontenttype", "content-type", "x", "skmeta", "", "sk-id", "ü", "ce_type"]
VALUES = ["", "a", "1.0", "a b", " a", "%25", "caf%C3%A9", "é", '"', "%zz", "a%20", "\n"]
RAW_NAMES = ["sk-id", "ce_specversion", "ce_type", "content-type", "x", "ce-type"]
RAW_VALUES = [b"", b"a", b"\xff", None, b"a b", b"%25", b'"']


def written(make: Any) -> Any:
    try:
        return make()
    except Rejected as refused:
        return str(refused)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_usual_is_only_quicker(seed: int) -> None:
    """Whatever is in the headers, the id and the key: the same record, the same message, the same refusal."""
    dice = random.Random(seed)
    for _ in range(500):
        headers = {name: dice.choice(VALUES) for name in dice.sample(NAMES, dice.randint(0, 5))}
        message = Message(dice.choice(["", "id", " x", "i d", "é"]), dice.choice(["", "k", "é"]), headers, b"x")
        record = written(lambda message=message: kafka_wire.checked(message)[2])
        assert record == written(lambda message=message: kafka_wire._one_by_one(message)[0])
        raw = [(dice.choice(RAW_NAMES), dice.choice(RAW_VALUES)) for _ in range(dice.randint(0, 4))]
        for there in [raw] if isinstance(record, str) else [raw, record]:
            key, value = dice.choice([None, b"", b"k", b"\xff"]), dice.choice([None, b"", b"v"])
            read: Any = SimpleNamespace(headers=tuple(there), key=key, value=value)
            assert kafka_wire.message_of(read) == kafka_wire._with_care(read)


def test_the_partition_is_the_one_that_kafkas_own_producer_takes() -> None:
    """For every key and count, as aiokafka computes it."""
    theirs = DefaultPartitioner()
    for number in range(500):
        key = f"order-{number}".encode() * (number % 4)
        assert kafka_wire.partition_of(key, 7) == theirs(key, list(range(7)), list(range(7)))
