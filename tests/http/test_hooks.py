"""What others post to us: kept, or told why not."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from synckit_streams import Invalid, StoreBusy, TooLarge
from synckit_streams.http.hooks import AT_ONCE_MAX, BODY_BYTES_MAX, HEADERS_MAX
from synckit_streams.ports.operation import Hooked
from tests.http.conftest import Served


class Kept:
    """Keeps what came, and answers as it was told to."""

    def __init__(self, answer: Hooked | Exception | None = None) -> None:
        self.answer = answer or Hooked(202)
        self.came: list[tuple[Mapping[str, str], bytes]] = []

    async def __call__(self, headers: Mapping[str, str], body: bytes) -> Hooked:
        self.came.append((headers, body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_webhook_gets_headers_and_body_as_they_came(served: Served) -> None:
    """Also a name that comes twice, and a body that is not text."""
    kept = Kept()
    async with served(hooks={"shop": kept}) as ask:
        headers = [("X-Signature", "sha256=ab"), ("X-Tag", "a"), ("X-Tag", "b"), ("Content-Type", "application/json")]
        found = await ask("POST", "/hooks/shop", data=b'{"\xff":1}', headers=headers)
    assert (found.status, found.body) == (202, b"")
    ((got, body),) = kept.came
    assert (got["x-signature"], got["x-tag"], got["content-type"]) == ("sha256=ab", "a, b", "application/json")
    assert body == b'{"\xff":1}'


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Hooked(204), 204, ""),
        (Hooked(401, "the signature does not match"), 401, "INVALID"),
        (Hooked(415, "only JSON"), 415, "INVALID"),
        (Invalid("an empty topic"), 400, "SK205"),
        (TooLarge("a payload of 2,000,000 bytes"), 413, "SK203"),
        (StoreBusy("somebody writes"), 503, "SK301"),
        (ValueError("a fault"), 500, "INTERNAL"),
    ],
    ids=str,
)
async def test_the_sender_hears_what_became_of_it(
    served: Served, answer: Hooked | Exception, status: int, code: str
) -> None:
    async with served(hooks={"shop": Kept(answer)}) as ask:
        found = await ask("POST", "/hooks/shop", data=b"{}")
    assert found.status == status
    assert not code or found.error["code"] == code
    assert ("retry-after" in found.headers) == (status == 503)


async def test_a_body_may_be_as_large_as_the_limit_and_no_larger(served: Served) -> None:
    """Whether its length is told before or not."""

    async def parts(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, 65_536):
            yield b"x" * min(65_536, size - start)

    kept = Kept()
    async with served(hooks={"shop": kept}) as ask:
        assert (await ask("POST", "/hooks/shop", data=b"x" * BODY_BYTES_MAX)).status == 202
        assert (await ask("POST", "/hooks/shop", data=parts(BODY_BYTES_MAX))).status == 202
        bodies: list[Any] = [io.BytesIO(b"x" * (BODY_BYTES_MAX + 1)), parts(BODY_BYTES_MAX + 1)]
        for body in bodies:
            found = await ask("POST", "/hooks/shop", data=body)
            assert (found.status, found.error["code"]) == (413, "TOO_LARGE")
    assert [len(body) for _, body in kept.came] == [BODY_BYTES_MAX] * 2


async def test_what_is_not_for_us_is_not_taken(served: Served) -> None:
    kept = Kept()
    async with served(hooks={"shop": kept}) as ask:
        assert (await ask("POST", "/hooks/other", data=b"{}")).status == 404
        assert (await ask("GET", "/hooks/shop")).status == 405
        packed = await ask("POST", "/hooks/shop", data=b"\x1f\x8b", headers={"content-encoding": "gzip"})
        assert (packed.status, packed.error["message"]) == (415, "unsupported content encoding: gzip")
        many = {f"x-{number}": "y" for number in range(HEADERS_MAX + 1)}
        assert (await ask("POST", "/hooks/shop", data=b"{}", headers=many)).status == 431
    assert kept.came == []


async def test_only_so_many_are_taken_at_once(served: Served) -> None:
    """The next one is told to come again, and is taken when there is room."""
    let_go, arrived = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(headers: Mapping[str, str], body: bytes) -> Hooked:
        arrived.release()
        await let_go.wait()
        return Hooked(204)

    async with served(hooks={"slow": slow}) as ask:
        async with asyncio.TaskGroup() as senders:
            first = [senders.create_task(ask("POST", "/hooks/slow", data=b"{}")) for _ in range(AT_ONCE_MAX)]
            for _ in first:
                await arrived.acquire()
            found = await ask("POST", "/hooks/slow", data=b"{}")
            assert (found.status, found.headers["retry-after"]) == (503, "1")
            let_go.set()
        assert {each.result().status for each in first} == {204}
        assert (await ask("POST", "/hooks/slow", data=b"{}")).status == 204
