"""A till: it writes orders into its own store, whether or not anybody can be reached, and sees what became of them.

python orders.py place 500 --cancel-every 10
python orders.py status --wait
"""

import argparse
import asyncio
import sys
import uuid
from collections import Counter

from settings import BROKER, ORDERS_STORE
from synckit_streams import Draft, SyncNode, Unavailable

PRICES = {"tea": 350, "coffee": 420, "cake": 510}
"""In cents."""
LOOK_S = 0.2


def till() -> SyncNode:
    """What it writes, and the two topics in which answers come."""
    return SyncNode("till", store=ORDERS_STORE, connectors=[BROKER], topics=["orders", "invoices", "orders.dlq"])


def drafts(count: int, *, cancel_every: int, spoilt: int) -> list[Draft]:
    """Orders, some of which are cancelled, and some of which nobody can bill."""
    made: list[Draft] = []
    for number in range(count):
        order_id = uuid.uuid4().hex
        product = list(PRICES)[number % len(PRICES)]
        order = {"product": product, "cents": PRICES[product]}
        made.append(Draft("orders", "order.placed", order_id, order))
        if cancel_every and number % cancel_every == 0:
            made.append(Draft("orders", "order.cancelled", order_id, {}))
    nonsense = {"product": "cake", "cents": "as usual"}
    return made + [Draft("orders", "order.placed", uuid.uuid4().hex, nonsense) for _ in range(spoilt)]


async def place(arguments: argparse.Namespace) -> None:
    async with till() as node:
        made = drafts(arguments.count, cancel_every=arguments.cancel_every, spoilt=arguments.spoilt)
        for at in range(0, len(made), 500):
            await node.append_many(made[at : at + 500])
        print(f"{arguments.count + arguments.spoilt} orders are on the disk")
        try:
            await node.sync()
            print("and at the broker")
        except Unavailable as error:
            print(f"offline ({error.message}): they go out at the next sync")


class Standing:
    """What has come of the orders, by the events in the till's own log."""

    def __init__(self) -> None:
        self.wanted: Counter[str] = Counter()
        self.had: Counter[str] = Counter()

    @classmethod
    async def of(cls, node: SyncNode) -> "Standing":
        self = cls()
        async for stored in node.log():
            event = stored.event
            match event.type:
                case "order.placed" if isinstance(event.data["cents"], int):
                    self.wanted.update(orders=1, cents=event.data["cents"])
                case "order.placed":
                    self.wanted.update(spoilt=1)
                case "order.cancelled":
                    self.wanted.update(cancelled=1)
                case "invoice.written":
                    self.had.update(orders=1, cents=event.data["cents"])
                case "invoice.cancelled":
                    self.had.update(cancelled=1)
                case "synckit.dead_letter":
                    self.had.update(spoilt=1)
        return self

    @property
    def complete(self) -> bool:
        return self.wanted == self.had

    def __str__(self) -> str:
        wanted, had = self.wanted, self.had
        return (
            f"{wanted['orders']} orders of {wanted['cents']} cents, {had['orders']} invoices of {had['cents']} cents; "
            f"{wanted['cancelled']} cancelled, {had['cancelled']} invoices taken back; {had['spoilt']} given up"
        )


async def status(arguments: argparse.Namespace) -> None:
    async with till() as node:
        while True:
            await node.sync()
            standing = await Standing.of(node)
            if standing.complete or not arguments.wait:
                break
            await asyncio.sleep(LOOK_S)
    print(standing)
    sys.exit(not standing.complete)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    placing = commands.add_parser("place", help="write so many orders")
    placing.add_argument("count", type=int)
    placing.add_argument("--cancel-every", type=int, default=0, metavar="N", help="cancel one in N")
    placing.add_argument("--spoilt", type=int, default=0, metavar="N", help="and N whose price is no number")
    placing.set_defaults(work=place)
    looking = commands.add_parser("status", help="what came of them; the exit status is 0 when that is everything")
    looking.add_argument("--wait", action="store_true", help="until it is")
    looking.set_defaults(work=status)
    arguments = parser.parse_args()
    asyncio.run(arguments.work(arguments))


if __name__ == "__main__":
    main()
