"""What nodes tell each other beside the log."""

from __future__ import annotations

import asyncio

import pytest

from synckit_streams.errors import TooLarge
from synckit_streams.ports.connector import Announced
from synckit_streams.testing.connector_contract.kit import DEADLINE_S, Bench, Factory, heard, opened


class Digests(Bench):
    """The last digest of each node, and the new ones."""

    # -------------------------------------------------------------------------------------------------------- digests

    async def test_a_digest_that_is_too_large_is_refused(self, factory: Factory, topic: str) -> None:
        """It is a clear error, and the last one stands."""
        async with opened(factory) as connector:
            await connector.announce(topic, "a", b"1")
            with pytest.raises(TooLarge):
                await connector.announce(topic, "a", b"x" * (connector.features.bytes_max + 1))
            assert (await heard(connector, topic))["a"].body == b"1"

    async def test_the_last_digest_of_each_node_is_kept(self, factory: Factory, topic: str) -> None:
        """Whoever listens first hears the last one of every node with its age, and then the marker."""
        async with opened(factory) as early:
            assert await heard(early, topic) == {}
            for round_ in range(3):
                for node in ("a", "node é/2", "b.c*>"):
                    await early.announce(topic, node, f"{node} {round_}".encode())
            await early.announce(f"{topic}-other", "stranger", b"x")
        async with opened(factory) as late:
            found = await heard(late, topic)
        assert {node: each.body.decode() for node, each in found.items()} == {
            "a": "a 2",
            "node é/2": "node é/2 2",
            "b.c*>": "b.c*> 2",
        }
        assert all(0 <= each.age_s < DEADLINE_S for each in found.values())

    async def test_an_age_is_the_brokers(self, factory: Factory, topic: str) -> None:
        """The age of a retained digest grows; one that comes live has none."""
        async with opened(factory) as connector:
            await connector.announce(topic, "a", b"1")
            first = (await heard(connector, topic))["a"].age_s
            deadline = asyncio.get_running_loop().time() + DEADLINE_S
            while (age := (await heard(connector, topic))["a"].age_s) <= first + 0.05:
                assert asyncio.get_running_loop().time() < deadline
            assert age < DEADLINE_S
            async with connector.listen(topic) as announcements:
                async for announced in announcements:
                    if not announced.node:
                        await connector.announce(topic, "a", b"2")
                    elif announced.body == b"2":
                        assert announced.age_s == 0.0
                        break

    async def test_a_digest_that_was_taken_back_is_gone(self, factory: Factory, topic: str) -> None:
        """Who listens hears that it was taken back; who comes later does not hear of the node at all."""
        async with opened(factory) as connector:
            await connector.announce(topic, "a", b"1")
            await connector.announce(topic, "b", b"1")
            told: list[tuple[str, bytes]] = []
            async with connector.listen(topic) as announcements:
                async for announced in announcements:
                    if not announced.node and not any(body == b"" for _, body in told):
                        await connector.announce(topic, "a", b"")
                    elif announced.node:
                        told.append((announced.node, announced.body))
                        if announced.body == b"":
                            break
            assert told[-1] == ("a", b"")
            assert {node: each.body for node, each in (await heard(connector, topic)).items()} == {"b": b"1"}
            await connector.announce(topic, "a", b"2")
            assert (await heard(connector, topic))["a"].body == b"2"

    async def test_digests_come_live(self, factory: Factory, topic: str) -> None:
        """A listener hears each new digest of others, and the marker again each time when there is no more."""
        async with (
            opened(factory) as listener,
            opened(factory) as speaker,
            listener.listen(topic) as announcements,
        ):
            assert await anext(announcements) == Announced("", b"", 0.0)
            for round_ in range(3):
                waiting = asyncio.ensure_future(anext(announcements))
                await speaker.announce(topic, "a", b"%d" % round_)
                assert await waiting == Announced("a", b"%d" % round_, 0.0)
                assert await anext(announcements) == Announced("", b"", 0.0)
