"""What the JetStream API answers, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import msgspec

from synckit_streams.errors import Rejected, SyncKitError, TooLarge, Unavailable

if TYPE_CHECKING:
    from nats.aio.msg import Msg

NANO = 1_000_000_000

# Codes of the JetStream API, from nats-server's errors.json.
NO_STREAM, NO_MESSAGE, NO_CONSUMER, NAME_TAKEN, CONSUMER_TAKEN = 10059, 10037, 10014, 10058, 10148
_TOO_LARGE, _NOT_ENABLED = 10054, {10039, 10076}
# A cluster without a leader, or a stream without its servers. The code 503 alone also stands for a stream that is full.
_TRANSIENT = {10003, 10008, 10009, 10118}


class ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class State(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0


class Config(msgspec.Struct):
    """Of a stream, or of a consumer."""

    subjects: list[str] = []
    retention: str = "limits"
    ack_policy: str = ""
    ack_wait: int = 0
    backoff: list[int] = []
    deliver_subject: str = ""
    filter_subject: str = ""
    filter_subjects: list[str] = []
    headers_only: bool = False
    max_batch: int = 0
    max_bytes: int = 0
    max_deliver: int = -1
    max_expires: int = 0
    opt_start_seq: int = 0
    priority_groups: list[str] = []


class Place(msgspec.Struct):
    """How far a consumer is."""

    stream_seq: int = 0


class Stored(msgspec.Struct):
    subject: str = ""
    seq: int = 0
    hdrs: bytes = b""
    data: bytes = b""
    time: str = ""


class Answer(msgspec.Struct):
    """What we read of the JetStream API's answers, all kinds in one; bytes are base64 in JSON, which msgspec undoes."""

    error: ApiError | None = None
    created: str = ""
    ts: str = ""
    config: Config | None = None
    state: State | None = None
    message: Stored | None = None
    delivered: Place = msgspec.field(default_factory=Place)
    ack_floor: Place = msgspec.field(default_factory=Place)
    num_pending: int = 0
    num_ack_pending: int = 0


class Ack(msgspec.Struct):
    """The answer to a publish."""

    error: ApiError | None = None
    seq: int = 0
    duplicate: bool = False


decode_answer = msgspec.json.Decoder(Answer).decode
decode_ack = msgspec.json.Decoder(Ack).decode

_T = TypeVar("_T")


def status_of(msg: Msg) -> str:
    return "" if msg.data or not msg.headers else msg.headers.get("Status", "")


def description_of(msg: Msg) -> str:
    return (msg.headers or {}).get("Description", "").strip()


def nanoseconds(text: str) -> int:
    """An RFC 3339 time of the server, which counts nanoseconds, since 1970."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    at = datetime.fromisoformat(f"{seconds}+00:00")
    return int(at.timestamp()) * NANO + int(fraction.ljust(9, "0")[:9])


def granted(answer: Answer, what: str) -> Answer:
    if answer.error is not None:
        raise refusal(answer.error, what)
    return answer


def refusal(error: ApiError, what: str) -> SyncKitError:
    text = f"{what}: {error.description} ({error.err_code})"
    if error.err_code in _NOT_ENABLED:
        return Rejected(text, hint="start the server with JetStream: nats-server -js")
    if error.err_code == _TOO_LARGE:
        return TooLarge(text, hint="raise the stream's max_msg_size")
    return Unavailable(text) if error.err_code in _TRANSIENT else Rejected(text)


def decode(decoder: Callable[[bytes], _T], raw: bytes, what: str) -> _T:
    try:
        return decoder(raw)
    except msgspec.MsgspecError as error:
        raise Rejected(f"{what}: the server's answer cannot be read: {error}") from error
