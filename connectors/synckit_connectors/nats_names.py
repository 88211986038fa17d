"""What streams, subjects and consumers are called, and how a message of ours looks there."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from hashlib import sha256

from synckit_streams.ports.connector import Message

DIGEST_STREAM = "skd"
NODE_HEADER = "Synckit-Node"
SAFE_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_SHORT_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it is also the name of a file on the server


@lru_cache(maxsize=10_000)
def hashed(text: str) -> str:
    """A subject token for any text."""
    return base64.b32encode(sha256(text.encode()).digest())[:26].decode()


def stream_name(topic: str) -> str:
    return f"sk-{topic}" if SAFE_TOKEN.fullmatch(topic) else f"skh-{hashed(topic)}"


def subjects(stream: str) -> list[str]:
    root, _, token = stream.partition("-")
    return [f"{root}.{token}.*" if token else f"{root}.>"]


def group_name(group: str, *, foreign: bool) -> str:
    """The durable consumer of a group; of one that taps a stream, another than of one that joined it."""
    kind = "skt" if foreign else "skg"
    return f"{kind}-{group}" if _SHORT_TOKEN.fullmatch(group) else f"{kind}h-{hashed(group)}"


def carried(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def header_fields(raw: bytes) -> dict[str, str]:
    """Headers as the server stores them: a line `NATS/1.0`, then one a header."""
    pairs = (line.partition(":") for line in raw.decode(errors="replace").split("\r\n")[1:])
    return {name: value.strip() for name, colon, value in pairs if colon}


def message(headers: dict[str, str], body: bytes) -> Message:
    return Message(
        headers.get("Nats-Msg-Id", ""),
        "",
        {name: value for name, value in headers.items() if not name.startswith("Nats-")},
        body,
    )


def foreign_message(place: str, subject: str, headers: dict[str, str], body: bytes) -> Message:
    """A message of somebody else's: its subject is the nearest thing to a key."""
    text = {name: value for name, value in headers.items() if "\ufffd" not in value}
    return Message(place, subject, text, body)
