"""A process that writes and syncs until it is killed: `python writer.py NODE STORE URL FIRST`.

Each id is printed once its append has returned: from then on it must never be lost.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count

from synckit_streams import Draft, SyncNode
from synckit_streams.errors import ConnectorError


async def main(name: str, store: str, url: str, first: int) -> None:
    """Write for ever."""
    async with SyncNode(name, store=store, connectors=[url], topics=["orders"]) as node:
        print("open", flush=True)  # noqa: T201
        for number in count(first):
            draft = Draft("orders", "order.changed", f"o-{number % 7}", {"n": number}, id=f"{name}-{number}")
            await node.append(draft)
            print(draft.id, flush=True)  # noqa: T201
            if number % 5 == 4:
                try:
                    await node.sync(timeout_s=5)
                except ConnectorError as error:
                    print(f"# {error}", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
