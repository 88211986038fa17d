"""A pipeline as a file says it: lines of JSON become events, and what cannot be read is kept with the reason.

Run it: python examples/09_connect.py
It does what `synckit connect orders.yaml --once` does, in a folder of its own.
"""

import asyncio
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from synckit_streams import SyncNode
from synckit_streams.connect.runner import Runner

PIPELINE = """
name: orders
source: {kind: file, path: orders.jsonl, type: /kind, aggregate_id: /order}
transforms:
  - {kind: filter, field: /test, op: missing}
  - {kind: mask, fields: [/mail]}
sink: {kind: store, store: "sqlite:///shop.db", node: shop, topic: orders}
"""
LINES = """
{"kind": "order.placed", "order": "o-1", "mail": "ann@example.org"}
{"kind": "order.placed", "order": "o-2", "test": true}
this is no JSON
{"kind": "order.paid", "order": "o-1"}
"""


async def move(file: Path) -> None:
    """Move what is there; whoever serves for long leaves `once` out, and stops when told to."""
    runner = Runner([file], once=True)
    await runner.start()
    await runner.wait()
    (standing,) = runner.standings()
    print(f"{standing.name}: {standing.state}, moved {standing.moved}, dead {standing.dead}")
    await runner.stop()


async def main(folder: Path) -> None:
    file = folder / "orders.yaml"
    file.write_text(PIPELINE)
    (folder / "orders.jsonl").write_text(LINES)
    await move(file)
    await move(file)  # nothing is moved twice
    async with SyncNode("shop", store=f"sqlite:///{folder}/shop.db") as node:
        async for stored in node.log("orders"):
            print(" ", stored.event.type, stored.event.aggregate_id, stored.event.data.get("mail", "without mail"))
    for line in (folder / "orders.state" / "orders.dead.jsonl").read_text().splitlines():
        print("dead:", json.loads(line)["data"]["original"]["raw"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # a warning says what goes to the dead letter; we show it ourselves
    with TemporaryDirectory() as made:
        asyncio.run(main(Path(made)))
