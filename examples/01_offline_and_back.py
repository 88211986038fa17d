"""A till writes while the network is down, and the office gets everything once it is back.

Run it: python examples/01_offline_and_back.py    (needs pip install 'synckit-streams[embedded]')
"""

import asyncio
import tempfile

from synckit_streams import Draft, SyncNode, Unavailable
from synckit_streams.testing.brokers import NatsServer


def placed(number: int, total: int) -> Draft:
    return Draft(topic="orders", type="order.placed", aggregate_id=f"o-{number}", data={"total": total})


async def main() -> None:
    server = NatsServer()
    server.start()
    with tempfile.TemporaryDirectory() as folder:

        def node(name: str) -> SyncNode:
            return SyncNode(name, store=f"sqlite:///{folder}/{name}.db", topics=["orders"], connectors=[server.url])

        server.stop()  # the network is down
        async with node("till-7") as till:
            await till.append(placed(1, 5))
            await till.append_many([placed(2, 12), placed(3, 7)])  # one durable commit
            try:
                await till.sync()
            except Unavailable as error:
                print(f"offline: {error.code}, can be tried again: {error.retryable}")

        server.start()  # and back; the till was switched off and on in the meantime
        async with node("till-7") as till:
            result = await till.sync()
            print(f"till-7 sent {result.events_pushed}, complete: {result.complete}")

        async with node("office") as office:
            result = await office.sync()
            print(f"office took {result.events_pulled}, complete: {result.complete}")
            async for stored in office.log("orders"):
                print(f"  {stored.event.aggregate_id} {stored.event.data}")
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
