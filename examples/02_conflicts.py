"""Two nodes change the same thing while offline. Nothing is lost, and the answer is chosen when it is read.

Run it: python examples/02_conflicts.py
"""

import asyncio

from synckit_streams import (
    AdditiveMerge,
    Conflict,
    Decision,
    Draft,
    FirstWriteWins,
    LastWriteWins,
    Resolution,
    SyncNode,
    VersionVector,
)


class HighestPrice:
    """A resolver of one's own: a pure function of the events, so every node gives the same answer."""

    name = "highest-price"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        winner = max(conflict.heads, key=lambda head: (head.data["price"], head.canonical_order))
        reason = f"{winner.data['price']} is the highest of {len(conflict.heads)} prices"
        return Resolution(winner, winner.data, conflict.heads, Decision.KEEP, (reason,))


def changed(id: str, data: dict[str, object], context: VersionVector | None = None) -> Draft:
    return Draft(topic="products", type="product.changed", aggregate_id="tea", id=id, data=data, context=context)


async def conflict(node: SyncNode) -> Conflict:
    """What a resolver sees: every event of the aggregate, and the heads, those that no other one knew."""
    events = await node.aggregate("products", "tea")
    return Conflict("products", "tea", tuple(events), (await node.resolve("products", "tea")).heads)


async def main() -> None:
    async with (
        SyncNode("shop", store="memory:", topics=["products"], connectors=["memory://shops"]) as shop,
        SyncNode("depot", store="memory:", topics=["products"], connectors=["memory://shops"]) as depot,
    ):
        await shop.append(changed("first", {"price": 4, "sold": 0, "tags": ["hot"]}))
        await shop.sync()
        await depot.sync()

        # Offline, each of them. Neither knows of the other's change.
        await shop.append(changed("shop's", {"price": 6, "sold": 3, "tags": ["hot", "new"]}))
        await asyncio.sleep(0.01)
        await depot.append(changed("depot's", {"price": 5, "sold": 2, "tags": ["green"]}))

        for node in (shop, depot, shop):
            await node.sync()
        print("same events:", await shop.digest("products") == await depot.digest("products"))
        print("heads:", [head.id for head in (await shop.resolve("products", "tea")).heads])

        # An answer is derived from the events and never stored, so the same events can be read with any resolver.
        # `SyncNode(..., resolver=...)` says which one a node's own `resolve()` and read models use.
        merge = AdditiveMerge(fields={"sold": "sum", "tags": "union"})
        for resolver in (LastWriteWins(), FirstWriteWins(), merge, HighestPrice()):
            answer = resolver.resolve(await conflict(shop))
            assert answer == resolver.resolve(await conflict(depot))
            print(f"{resolver.name.partition(':')[0]}: {answer.data}")

        # Somebody decides: an event that has seen both heads ends the conflict, everywhere.
        read = await shop.resolve("products", "tea")
        await shop.append(changed("decided", {"price": 6, "sold": 5, "tags": ["hot", "new", "green"]}, read.context))
        await shop.sync()
        await depot.sync()
        print("heads after the decision:", [head.id for head in (await depot.resolve("products", "tea")).heads])


if __name__ == "__main__":
    asyncio.run(main())
