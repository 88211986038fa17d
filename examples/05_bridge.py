"""Two shops on a broker each, and a hub that is at both: what comes by one goes out by the other, once.

Run it: python examples/05_bridge.py
"""

import asyncio

from synckit_streams import Draft, SyncNode

NORTH, SOUTH = "memory://north", "memory://south"


def order(number: str, total: int) -> Draft:
    return Draft(topic="orders", type="order.placed", aggregate_id=number, data={"total": total})


async def orders(node: SyncNode) -> list[str]:
    return sorted([stored.event.aggregate_id async for stored in node.log("orders")])


async def main() -> None:
    async with (
        SyncNode("shop-north", store="memory:", connectors=[NORTH], topics=["orders"]) as north,
        SyncNode("shop-south", store="memory:", connectors=[SOUTH], topics=["orders"]) as south,
        SyncNode("hub", store="memory:", connectors=[NORTH, SOUTH], topics=["orders"], bridge=True) as hub,
    ):
        await north.append(order("n-1", 5))
        await south.append(order("s-1", 7))
        for shop in (north, south):
            await shop.sync()
        result = await hub.sync()
        print(f"hub took {result.events_pulled}, sent {result.events_pushed}, complete: {result.complete}")
        for shop in (north, south):
            await shop.sync()
            print(f"{shop.node_id}: {', '.join(await orders(shop))}")
        print("a second meeting sends", (await hub.sync()).events_pushed)


if __name__ == "__main__":
    asyncio.run(main())
