"""A URL that takes batches of CloudEvents by POST.

What a status means: 2xx, it has them. 401, 403, 407, 408, 421, 423, 425, 429, 3xx and 5xx say something of us or of
the server and nothing of the records: they come again, not before `Retry-After` if the answer names one. Any other 4xx
means that a record is wrong: halving finds out which one, and that goes to the dead letter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from synckit_streams.connect.cloudevents import as_cloudevent
from synckit_streams.connect.record import Later, Record, Refusal, derived_id
from synckit_streams.connect.spec import HttpSink as Spec
from synckit_streams.errors import MissingDependency, Rejected, Timeout, Unauthorised, Unavailable

CONTENT_TYPE = "application/cloudevents-batch+json"
ABOUT_US = (401, 403, 407)
COME_AGAIN = (408, 421, 423, 425, 429)
RETRY_AFTER_S_MAX = 3_600.0
"""A server that asks for a longer pause is asked again after this one."""
SAID_BYTES_MAX = 200
"""So much of a refusal's text is kept."""

_encode = msgspec.json.Encoder().encode


def _require_aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError as missing:
        raise MissingDependency("a sink of kind http needs aiohttp", hint="pip install 'synckit-streams[http]'") from (
            missing
        )
    return aiohttp


class HttpSink:
    """See the module's text.

    Args:
        spec: What the pipeline's file says.
        name: For people.
    """

    def __init__(self, spec: Spec, name: str) -> None:
        self._spec = spec
        self._http = _require_aiohttp()
        self._session: Any = None
        self.name = name

    async def open(self) -> None:
        """See `Sink`. Nothing is asked of the server yet."""
        timeout = self._http.ClientTimeout(total=self._spec.timeout_seconds)
        self._session = self._http.ClientSession(headers=self._spec.headers, timeout=timeout)

    async def write(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """See `Sink`."""
        refused: list[Refusal] = []
        await self._post(records, refused)
        return refused

    async def _post(self, records: Sequence[Record], refused: list[Refusal]) -> None:
        status, said, retry_after = await self._answer(records)
        if 200 <= status < 300:
            return
        why = f"{self.name} answered {status}{': ' + said if said else ''}"
        if status in ABOUT_US:
            raise Unauthorised(why, hint="check the headers of the sink; the records wait")
        if status in COME_AGAIN or not 400 <= status < 500:
            raise Later(why, after_s=_seconds(retry_after))
        if len(records) == 1:
            refused.append(Refusal(records[0], Rejected(why, hint="the receiver does not take this record")))
            return
        middle = len(records) // 2
        await self._post(records[:middle], refused)
        await self._post(records[middle:], refused)

    async def _answer(self, records: Sequence[Record]) -> tuple[int, str, str]:
        """Status, text and Retry-After."""
        body = _encode([as_cloudevent(record, self._spec.topic) for record in records])
        # Whoever cannot look at each event's id can know the batch again by this.
        key = derived_id(*(record.id for record in records))
        headers = {"content-type": CONTENT_TYPE, "idempotency-key": key}
        try:
            async with self._session.post(
                self._spec.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                raw: bytes = await response.content.read(SAID_BYTES_MAX)
                said = " ".join(raw.decode(errors="replace").split())
                return response.status, said, response.headers.get("retry-after", "")
        except TimeoutError:
            raise Timeout(f"{self.name} did not answer within {self._spec.timeout_seconds:g} s") from None
        except (self._http.ClientError, OSError) as error:
            raise Unavailable(f"{self.name}: {error}", hint="the records wait, and come again") from error

    async def settle(self) -> None:
        """It has them already."""

    async def close(self) -> None:
        """See `Sink`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _seconds(retry_after: str) -> float:
    """How long a `Retry-After` asks us to wait: seconds, or a date; 0 if it says nothing that can be read."""
    try:
        wanted = float(retry_after) if retry_after.strip().isdigit() else _until(retry_after)
    except (TypeError, ValueError):
        return 0.0
    return min(max(wanted, 0.0), RETRY_AFTER_S_MAX)


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
