"""What we use of FastStream and it does not promise, name by name: if a release moves one, this says which.

Only `synckit_streams/app/faststream_internals.py` reaches there; import-linter sees to that.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from faststream import BaseMiddleware, StreamMessage
from faststream._internal.context.repository import ContextRepo
from faststream.kafka import KafkaBroker
from faststream.nats import NatsBroker
from faststream.redis import RedisBroker, StreamSub

ROOT = Path(__file__).parents[2] / "synckit_streams"
BROKERS = {"kafka": KafkaBroker, "nats": NatsBroker, "redis": RedisBroker}

MODULES = [
    ("faststream._internal.endpoint.subscriber.usecase", "SubscriberUsecase"),
    ("faststream._internal.parser", "BatchCodecProto"),
    ("faststream._internal.parser", "CodecProto"),
    ("faststream.message", "encode_message"),
    ("faststream.exceptions", "IgnoredException"),
    ("faststream.exceptions", "AckMessage"),
    ("faststream.exceptions", "NackMessage"),
    ("faststream.exceptions", "SubscriberNotFound"),
    ("faststream.redis.parser", "BinaryMessageFormatV1"),
]


@pytest.mark.parametrize(("module", "name"), MODULES)
def test_the_name_is_where_it_was(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"{module} has no {name} any more"


def subscriber(kind: str) -> Any:
    broker: Any = BROKERS[kind]()

    async def bill(order: str) -> None: ...

    made = broker.subscriber(stream=StreamSub("orders")) if kind == "redis" else broker.subscriber("orders")
    return broker, made, made(bill)


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_tells_its_subscribers_and_they_their_name_policy_and_handlers(kind: str) -> None:
    broker, made, handler = subscriber(kind)
    assert made in broker.subscribers
    assert made.specification.call_name == "Bill"
    assert made.ack_policy.name
    assert [each.handler for each in made.calls] == [handler]
    assert made.calls[0].handler._original_call.__name__ == "bill"
    assert callable(broker.add_middleware)


def test_a_middleware_is_made_and_called_as_it_was() -> None:
    parameters = list(inspect.signature(BaseMiddleware.__init__).parameters)
    assert parameters == ["self", "msg", "context"]
    assert list(inspect.signature(BaseMiddleware.consume_scope).parameters) == ["self", "call_next", "msg"]
    assert {"msg", "context"} == set(BaseMiddleware.__slots__)


def test_a_context_has_scopes_and_what_is_local_to_them() -> None:
    context = ContextRepo()
    with context.scopes([("handler_", 1), ("other", 2)]):
        assert (context.get_local("handler_"), context.get_local("other")) == (1, 2)
    assert context.get_local("handler_") is None


def test_a_message_has_what_it_had() -> None:
    message = StreamMessage("raw", b"body", headers={"a": "b"}, batch_headers=[{"c": "d"}])
    assert (message.raw_message, message.body, message.headers, message.batch_headers) == (
        "raw", b"body", {"a": "b"}, [{"c": "d"}],
    )  # fmt: skip
    assert callable(message.clear_cache)
    assert hasattr(StreamMessage, "__copy__"), "a copy would share the cache of what was decoded"


@pytest.mark.parametrize("batch", [False, True])
def test_codecs_are_called_as_they_were(batch: bool) -> None:
    from synckit_streams.app.faststream import EventCodec
    from synckit_streams.app.faststream_internals import BatchCodecProto, CodecProto

    proto: Any = BatchCodecProto if batch else CodecProto
    for name in ("encode_batch", "decode_batch") if batch else ("encode", "decode"):
        theirs, ours = (list(inspect.signature(getattr(each, name)).parameters) for each in (proto, EventCodec))
        assert theirs == ours, name
    assert isinstance(EventCodec(), BatchCodecProto)


def test_only_one_module_imports_it() -> None:
    importing = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "faststream" for name in names):
                importing.append(path.name)
    assert set(importing) == {"faststream_internals.py"}
