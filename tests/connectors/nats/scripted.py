"""A server that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence


class ScriptedServer:
    """Speaks enough of the protocol to be connected to, and answers as the test says.

    Args:
        script: Called with the server, the subject and the reply subject of each publish.
        version: What it says it is.
        greeting: What it says to each connection, in turn; then "PONG".
    """

    def __init__(
        self,
        script: Callable[[ScriptedServer, str, str], None] = lambda server, subject, reply: None,
        *,
        version: str = "2.14.0",
        greetings: Sequence[str] = (),
    ) -> None:
        self._script = script
        self._info = {"server_id": "x", "version": version, "headers": True, "max_payload": 1048576, "proto": 1}
        self._greetings = list(greetings)
        self._subscriptions: dict[str, str] = {}
        self._writer: asyncio.StreamWriter | None = None
        self.published: list[str] = []
        """Subjects of publishes, in order."""
        self.url = ""

    async def __aenter__(self) -> ScriptedServer:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._listener.wait_closed()

    def say(self, inbox: str, body: object = b"", *, status: str = "", subject: str = "", reply: str = "") -> None:
        """A message for whoever listens at `inbox`: with this body (JSON unless bytes), or this status line."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        sid = next(
            sid for heard, sid in self._subscriptions.items() if inbox == heard or inbox.startswith(heard.rstrip("*"))
        )
        assert self._writer is not None
        head = f"NATS/1.0 {status}\r\n\r\n".encode() if status else b""
        if head:
            line = f"HMSG {subject or inbox} {sid} {reply} {len(head)} {len(head) + len(payload)}"
        else:
            line = f"MSG {subject or inbox} {sid} {reply} {len(payload)}"
        self._writer.write(line.encode() + b"\r\n" + head + payload + b"\r\n")

    def deliver(self, inbox: str, consumer: str, *, position: int, number: int, behind: int = 0) -> None:
        """Message `position` of a stream, `number` of a consumer."""
        reply = f"$JS.ACK.sk-t.{consumer}.1.{position}.{number}.{position}000.{behind}"
        self.say(inbox, b"%d" % position, subject="sk.t.x", reply=reply)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client may leave at any time
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._subscriptions.clear()
        writer.write(f"INFO {json.dumps(self._info)}\r\n".encode())
        while line := (await reader.readline()).decode().split():
            if line[0] == "PING":
                said = self._greetings.pop(0) if self._greetings else "PONG"
                if not said:
                    break
                writer.write(f"{said}\r\n".encode())
            elif line[0] == "SUB":
                self._subscriptions[line[1]] = line[-1]
            elif line[0] in ("PUB", "HPUB"):
                await reader.readexactly(int(line[-1]) + 2)
                has_reply = len(line) == (4 if line[0] == "PUB" else 5)
                self.published.append(line[1])
                self._script(self, line[1], line[2] if has_reply else "")


def jetstream(server: ScriptedServer, subject: str, reply: str) -> bool:
    """What every JetStream server answers; False if this is something else."""
    created = "2026-01-01T00:00:00.5Z"
    if subject == "$JS.API.INFO":
        server.say(reply, {})
    elif subject.startswith("$JS.API.STREAM.INFO."):
        server.say(reply, {"created": created, "config": {"subjects": ["sk.t.*"]}, "state": {"last_seq": 9}})
    elif subject.startswith("$JS.API.STREAM.MSG.GET."):
        server.say(reply, {"error": {"code": 404, "err_code": 10037, "description": "no message found"}})
    elif subject.startswith("$JS.API.CONSUMER.CREATE."):
        server.say(reply, {"created": created, "num_pending": 3})
    else:
        return False
    return True
