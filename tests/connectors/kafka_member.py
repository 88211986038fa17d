"""A member of a group in a process of its own, to be killed: takes batches, says what it has, and acknowledges half.

    python kafka_member.py URL TOPIC

Each line on standard output is one message that it has taken, and then `held`.
"""

from __future__ import annotations

import asyncio
import sys

from synckit_connectors.kafka import KafkaConnector


async def main(url: str, topic: str) -> None:
    connector = KafkaConnector(url)
    await connector.open()
    async with connector.join(topic, group="workers", start={}, batch_max=10) as member:
        first = await anext(member)
        await member.ack(first[: len(first) // 2])
        for each in first:
            sys.stdout.write(f"{each.message.body.decode()}\n")
        sys.stdout.write("held\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
