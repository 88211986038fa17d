"""What a supervisor and a worker say to each other, over a pair of sockets: frames of MessagePack behind their length.

The worker says once that it is ready; the supervisor asks how it is and what it has counted. What the supervisor wants
done it says by signals, which also reach a worker that no longer listens.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal

import msgspec

from synckit_streams.errors import FrameMalformed
from synckit_streams.observe.exposition import Family
from synckit_streams.ports.operation import Check

FRAME_BYTES_MAX = 64 * 1024**2
"""Largest frame: the metrics of one worker."""

_length = struct.Struct(">I")


class Ready(msgspec.Struct, tag=True):
    """The worker has begun to work."""


class Ask(msgspec.Struct, tag=True):
    """A question; `number` comes back with the answer."""

    number: int
    what: Literal["checks", "metrics"]


class Told(msgspec.Struct, tag=True):
    """The answer to one."""

    number: int
    checks: list[Check] = []
    metrics: list[Family] = []


Frame = Ready | Ask | Told

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


class Wire:
    """One end of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        """Take over a connected socket."""
        return cls(*await asyncio.open_connection(sock=end))

    async def send(self, frame: Frame) -> None:
        """Say something; when the other end is gone, nobody hears it."""
        body = _encode(frame)
        if len(body) > FRAME_BYTES_MAX:
            raise FrameMalformed(f"a frame of {len(body):,} bytes", hint=f"at most {FRAME_BYTES_MAX:,}")
        try:
            self._writer.write(_length.pack(len(body)) + body)
            await self._writer.drain()
        except ConnectionError:
            return

    async def receive(self) -> Frame | None:
        """The next frame; None when the other end is gone.

        Raises:
            FrameMalformed: something else writes into it.
        """
        try:
            (length,) = _length.unpack(await self._reader.readexactly(_length.size))
            if length > FRAME_BYTES_MAX:
                raise FrameMalformed(f"a frame of {length:,} bytes", hint=f"at most {FRAME_BYTES_MAX:,}")
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        try:
            frame: Frame = _decode(body)
        except msgspec.MsgspecError as error:
            raise FrameMalformed(f"between supervisor and worker: {error}") from error
        return frame

    def close(self) -> None:
        """Say no more."""
        self._writer.close()
