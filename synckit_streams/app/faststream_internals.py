"""What we use of FastStream, and of what it does not promise: the one place that a new release of it can break.

Its messages differ from broker to broker, and only the raw one tells where it stands. The tests look at every name that
is used here, and say which one has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from synckit_streams.errors import ConfigError, MissingDependency

try:
    from faststream import AckPolicy, BaseMiddleware, Context, StreamMessage
    from faststream._internal.endpoint.subscriber.usecase import SubscriberUsecase
    from faststream._internal.parser import BatchCodecProto, CodecProto
    from faststream.exceptions import AckMessage, IgnoredException, NackMessage, SubscriberNotFound
    from faststream.message import encode_message
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[2]:
        raise ConfigError(
            f"this release of FastStream has no {error.name}", hint="pip install 'synckit-streams[faststream]'"
        ) from error
    raise MissingDependency("FastStream is not installed", hint="pip install 'synckit-streams[faststream]'") from error
except ImportError as error:
    raise ConfigError(
        f"this release of FastStream has moved something: {error}", hint="pip install 'synckit-streams[faststream]'"
    ) from error

__all__ = [
    "AckMessage",
    "BaseMiddleware",
    "BatchCodecProto",
    "CodecProto",
    "Context",
    "IgnoredException",
    "NackMessage",
    "Single",
    "StreamMessage",
    "doubled",
    "encode_message",
    "is_batch",
    "keep_alive",
    "singles",
    "subscriber_name",
    "subset",
    "unparsed",
    "unreliable",
    "untaken",
    "unwanted",
]

_REDIS_EVENT = b"ce-specversion"
_LIBRARIES = {"faststream", "fast_depends", "pydantic", "json", "contextlib", "synckit_streams"}
"""What stands between the middleware and the user's handler."""


class Single(NamedTuple):
    """One message, be it alone or one of a batch.

    Args:
        headers: With their values as text.
        body: As it came.
        source: The broker's name for where it came from: topic, subject or key.
        position: Where it stands there, the same whenever it is delivered again; "" if the broker does not say.
    """

    headers: Mapping[str, str]
    body: bytes
    source: str
    position: str


def singles(message: StreamMessage[Any]) -> list[Single]:
    """The messages in what FastStream hands on: one, or those of a batch."""
    raw = message.raw_message
    if isinstance(raw, Mapping):
        return list(_of_redis(message, raw))
    several = raw if isinstance(raw, list | tuple) else (raw,)
    # TestBroker's batches have no headers of each.
    heads = message.batch_headers if len(message.batch_headers) == len(several) else [message.headers] * len(several)
    of = _of_kafka if hasattr(several[0] if several else None, "partition") else _of_nats
    return [
        of(each, {str(name): str(value) for name, value in head.items()})
        for each, head in zip(several, heads, strict=True)
    ]


def is_batch(message: StreamMessage[Any]) -> bool:
    """Whether the handler takes a list. On Redis FastStream asks for batches, too, as for single messages."""
    raw = message.raw_message
    return isinstance(raw["data"] if isinstance(raw, Mapping) else raw, list | tuple)


def unparsed(raw: Any) -> list[Single]:
    """The same of messages that FastStream could not read, without their headers."""
    several = raw if isinstance(raw, list | tuple) else (raw,)
    return [
        single for each in several for single in singles(StreamMessage(each, getattr(each, "data", b""), headers={}))
    ]  # fmt: skip


def _of_kafka(record: Any, headers: dict[str, str]) -> Single:
    # With the time: a topic that was deleted and made anew counts from 0 again.
    place = f"kafka/{record.topic}/{record.partition}/{record.offset}/{record.timestamp}"
    return Single(headers, record.value or b"", record.topic, f"{place}/{headers.get('correlation_id', '')}")


def _of_nats(message: Any, headers: dict[str, str]) -> Single:
    position = ""
    if _is_jetstream(message):  # else there is no stream, and nothing to tell it by
        about = message.metadata
        position = f"nats/{about.stream}/{about.sequence.stream}/{about.timestamp.isoformat()}"
    return Single(headers, message.data or b"", message.subject, position)


def _is_jetstream(message: Any) -> bool:
    return str(getattr(message, "reply", None) or "").startswith("$JS.ACK.")


def _of_redis(message: StreamMessage[Any], raw: Mapping[str, Any]) -> Iterator[Single]:
    data, ids, channel = raw["data"], raw.get("message_ids") or [], raw["channel"]
    several = data if isinstance(data, list) else [data]
    heads = message.batch_headers if isinstance(data, list) else [message.headers]
    for number, each in enumerate(several):
        headers = heads[number] if number < len(heads) else {}
        body = message.body if not isinstance(data, list) else _body_of(each)
        if isinstance(each, Mapping) and _REDIS_EVENT in each:  # of ours: the fields are the headers
            headers = {name.decode(): value.decode() for name, value in each.items() if name != b"data"}
            body = each.get(b"data", b"")
        position = f"redis/{channel}/{_text(ids[number])}" if number < len(ids) else ""
        yield Single({str(name): str(value) for name, value in headers.items()}, body, channel, position)


def _body_of(entry: Any) -> bytes:
    """Of an entry in a batch; what FastStream writes has a frame of its own around it."""
    from faststream.redis.parser import BinaryMessageFormatV1

    content = entry.get(b"__data__", b"") if isinstance(entry, Mapping) else entry
    return BinaryMessageFormatV1.parse(content)[0] if content else b""


def _text(id: Any) -> str:
    return id.decode() if isinstance(id, bytes) else str(id)


def subset(message: StreamMessage[Any], wanted: Sequence[int]) -> StreamMessage[Any]:
    """A batch with only these of its messages; it is acknowledged as a whole."""
    raw = message.raw_message
    if len(wanted) == len(singles(message)):
        return message
    part = copy(message)
    if isinstance(raw, Mapping):
        chosen = dict(raw)
        chosen["data"] = [raw["data"][each] for each in wanted]
        if raw.get("message_ids"):
            chosen["message_ids"] = [raw["message_ids"][each] for each in wanted]
        part.raw_message = chosen
        part.body = _chosen_json(message.body, wanted)
    else:
        part.raw_message = type(raw)(raw[each] for each in wanted)
        if isinstance(message.body, list | tuple):
            part.body = [message.body[each] for each in wanted]
    if message.batch_headers:
        part.batch_headers = [message.batch_headers[each] for each in wanted]
    return part


def _chosen_json(body: Any, wanted: Sequence[int]) -> Any:
    """Redis' batches are one JSON list."""
    found = msgspec.json.decode(body, type=list[msgspec.Raw])
    return msgspec.json.encode([found[each] for each in wanted])


def subscriber_name(context: Any) -> str:
    """What FastStream calls the subscriber whose message is being handled: made of its handlers' names."""
    subscriber: SubscriberUsecase[Any] = context.get_local("handler_")
    return subscriber.specification.call_name


def unreliable(broker: Any) -> list[str]:
    """The subscribers of which the broker is told before the work is committed, or by the handler itself."""
    wrong = (AckPolicy.ACK_FIRST, AckPolicy.MANUAL)
    return [each.specification.call_name for each in broker.subscribers if each.ack_policy in wrong]


def doubled(broker: Any) -> list[str]:
    """The names that several handlers have."""
    functions: dict[str, set[Any]] = {}
    for each in broker.subscribers:
        own = tuple(call.handler._original_call for call in each.calls)
        functions.setdefault(each.specification.call_name, set()).add(own)
    return [name for name, found in functions.items() if len(found) > 1]


def untaken(error: BaseException) -> bool:
    """Whether the message never reached the user's code: it could not be decoded, or did not fit his model."""
    if not isinstance(error, ValueError | TypeError):
        return False
    return all(name.partition(".")[0] in _LIBRARIES for name in _modules(error.__traceback__))


def unwanted(error: BaseException) -> bool:
    """Whether no handler could be found for a message, because it could not be read or because none wants it."""
    return isinstance(error, SubscriberNotFound) or untaken(error)


def _modules(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next


def keep_alive(message: StreamMessage[Any]) -> Callable[[], Any] | None:
    """How to tell the broker that somebody is still at work on a message; None where it cannot be told."""
    raw = message.raw_message
    first = raw[0] if isinstance(raw, list) and raw else raw
    if not _is_jetstream(first):
        return None
    alive: Callable[[], Any] | None = getattr(message, "in_progress", None)
    return alive
