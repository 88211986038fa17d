"""How the broker and the ways to it behave just now, and what bad weather makes of a message."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

import msgspec

from synckit_streams.ports.connector import Message


@dataclass
class Weather:
    """How the broker behaves just now; every chance is of one message."""

    latency_s: float = 0.004
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    poison: float = 0.0
    skip: float = 0.0
    """One reader does not get a message that is in the log."""
    digests: bool = True
    """Whether the control channel works at all."""


@dataclass
class Net:
    """One machine's way to the broker.

    Args:
        out: What it sends arrives.
        back: What is sent to it arrives.
        rate: Messages a second that it can read; 0 is without a limit.
    """

    out: bool = True
    back: bool = True
    rate: float = 0.0
    changed: set[asyncio.Event] = field(default_factory=set)

    def set(self, *, out: bool, back: bool) -> None:
        """The way changes; who waits looks again."""
        self.out, self.back = out, back
        for event in self.changed:
            event.set()


def damaged(message: Message, dice: Random) -> Message:
    """The message with something in it changed on the way."""
    kind = dice.randrange(4)
    if kind == 0 and message.body:
        at = dice.randrange(len(message.body))
        body = message.body[:at] + bytes([message.body[at] ^ 1 << dice.randrange(8)]) + message.body[at + 1 :]
        return msgspec.structs.replace(message, body=body)
    if kind == 1:
        return msgspec.structs.replace(message, body=message.body[: len(message.body) // 2])
    headers = dict(message.headers)
    name = dice.choice(sorted(headers))
    if kind == 2:
        del headers[name]
    else:
        headers[name] = headers[name][::-1] + "x"
    return msgspec.structs.replace(message, headers=headers)
