"""JSON of other producers on real brokers: each message becomes one event, also when the one who ingests is killed."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import uuid
from pathlib import Path

import pytest

from synckit_streams import Ingest, Ingested, Rejected, SyncNode
from tests.acceptance.kit import Make, ids
from tests.acceptance.producers import produce


@pytest.fixture
def source() -> str:
    """A name of the broker's own that nobody else uses."""
    return f"raw-{uuid.uuid4().hex[:12]}"


def order(number: int) -> bytes:
    return json.dumps({"kind": "order.placed", "order": f"o-{number % 7}", "n": number}).encode()


async def test_each_message_becomes_one_event(make: Make, url: str, topic: str, source: str) -> None:
    """Whatever cannot become one is set aside; under another group the same messages are known."""
    told = Ingest(connector=url, source=source, topic=topic, type="/kind", aggregate_id="/order", group="one")
    node = await make("hub", None)
    with pytest.raises(Rejected):
        await node.ingest(told, idle_s=1)
    await produce(url, source, [*(order(number) for number in range(40)), b"\xff", b"{}"])
    assert await node.ingest(told, idle_s=2) == Ingested(read=42, written=40, set_aside=2)
    again = Ingest(connector=url, source=source, topic=topic, type="/kind", aggregate_id="/order", group="two")
    assert await node.ingest(again, idle_s=2) == Ingested(read=42, known=40, set_aside=2)
    assert len(await ids(node, topic)) == 40


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("broker", "more"), [("nats", ""), ("redis", ""), ("kafka", "&session_s=6&heartbeat_s=1")])
async def test_one_who_ingests_and_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, topic: str, source: str, broker: str, more: str
) -> None:
    """With SIGKILL, at any point: what he had not acknowledged comes again, and is written once.

    Whoever comes after him ends when all of it is written, and not when it was quiet for a moment.
    """
    url = request.getfixturevalue(f"{broker}_url")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - what to play again
    dice = random.Random(seed)
    store = f"sqlite:///{tmp_path}/hub.db"
    command = [
        sys.executable,
        "-m",
        "synckit_streams.cli",
        "ingest",
        source,
        "--connector",
        f"{url}?ack_wait_s=1{more}",
    ]
    command += ["--store", store, "--node", "hub", "--topic", topic, "--type", "/kind", "--aggregate", "/order"]
    await produce(url, source, [order(number) for number in range(3000)])
    for _ in range(4):
        process = await asyncio.create_subprocess_exec(
            *command, "--watch", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        async with asyncio.timeout(60):
            await process.stderr.readline()  # it works
        # The one wait that is no condition: the point at which it dies is meant to be anywhere.
        await asyncio.sleep(dice.random() * 0.5)
        process.kill()
        await process.communicate()
    done = await asyncio.create_subprocess_exec(*command, "--idle", "0.5", "--json", stdout=asyncio.subprocess.PIPE)
    said, _ = await done.communicate()
    assert done.returncode == 0
    assert json.loads(said)["set_aside"] == 0
    async with SyncNode("hub", store=store, topics=[topic]) as node:
        numbers = [stored.event.data["n"] async for stored in node.log(topic, twins=True)]
    assert sorted(numbers) == list(range(3000))
