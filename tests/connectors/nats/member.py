"""A program: a member of a group that writes each message's number to a file, and acknowledges it.

Its arguments are the server's URL, a topic and the file. What is in the file is its durable effect.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from synckit_connectors.nats_jetstream import NatsConnector


async def main(url: str, topic: str, path: Path) -> None:
    connector = NatsConnector(url, ack_wait_s=1.0)
    await connector.open()
    with path.open("ab", buffering=0) as effects:
        async with connector.join(topic, group="g", start={}, batch_max=20) as member:
            async for batch in member:
                for each in batch:
                    effects.write(each.message.body + b"\n")
                    await asyncio.sleep(0.001)  # so that a kill finds it at work
                await member.ack(batch)


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
