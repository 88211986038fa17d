"""What a connector carries, what it refuses, and what it declares."""

from __future__ import annotations

import asyncio

import pytest

from synckit_streams.errors import Rejected, SyncKitError
from synckit_streams.ports.connector import ID_CHARS_MAX, Connector, Message
from synckit_streams.testing.connector_contract.kit import (
    HEADER_OVERHEAD_BYTES,
    PRINTABLE,
    Bench,
    Factory,
    bodies,
    heard,
    message,
    messages,
    opened,
    read,
)


class Carrying(Bench):
    """Messages, ids and headers; features."""

    # ------------------------------------------------------------------------------------------- what is carried

    async def test_it_is_a_connector(self, factory: Factory) -> None:
        """It has everything that the port asks for."""
        assert isinstance(factory(), Connector)

    async def test_a_message_arrives_as_it_was_sent(self, factory: Factory, topic: str) -> None:
        """Bodies are bytes and headers are text, and both arrive exactly."""
        sent = [
            message(body=b""),
            message(body=bytes(range(256)) * 3, headers={"ce-id": "1"}),
            message(body=b"NATS/1.0\r\n\r\n$5\r\n", headers={"Mixed-Case_Name.1": PRINTABLE, "empty": ""}),
            message(
                body=b"\xff\xfe", headers={"inner": "a  b   c", "colon": "a: b:c", "quoted": '"\\"=?utf-8?q?=41?='}
            ),
        ]
        async with opened(factory) as connector:
            await connector.send(topic, sent)
            got = {each.message.id: each.message for each in await read(connector, topic, len(sent))}
        assert {each.id: each.body for each in sent} == {id: each.body for id, each in got.items()}
        assert {each.id: dict(each.headers) for each in sent} == {id: dict(each.headers) for id, each in got.items()}

    @pytest.mark.parametrize("value", ["a\r\nForged: yes", "a\nForged: yes", "café", "\x00", " outer blanks "])
    async def test_a_header_that_cannot_be_carried_is_refused(self, factory: Factory, topic: str, value: str) -> None:
        """No header is changed on the way and none becomes two: it is refused, and nothing is stored."""
        async with opened(factory) as connector:
            with pytest.raises(Rejected):
                await connector.send(topic, [message(headers={"a": value})])
            assert all(each.first == each.end for each in (await connector.bounds(topic)).values())
            await connector.send(topic, [message(body=b"next")])
            assert bodies(await read(connector, topic, 1)) == [b"next"]

    @pytest.mark.parametrize("id", ["x" * (ID_CHARS_MAX + 1), "a\r\nb", "é", " a", "a ", "\x7f"])
    async def test_an_id_that_cannot_be_carried_is_refused(self, factory: Factory, topic: str, id: str) -> None:
        """Nor is an id changed: what comes back has the id that was sent, and its fingerprint depends on it."""
        async with opened(factory) as connector:
            with pytest.raises(Rejected):
                await connector.send(topic, [message(body=b"before"), Message(id, "k", {}, b"")])
            longest = "a b~" + "x" * (ID_CHARS_MAX - 4)
            await connector.send(topic, [Message(longest, "k", {}, b""), Message("", "k", {}, b"none")])
            assert sorted(each.message.id for each in await read(connector, topic, 2)) == ["", longest]

    async def test_a_large_message_arrives(self, factory: Factory, topic: str) -> None:
        """A message of exactly `bytes_max`, headers included, is carried."""
        async with opened(factory) as connector:
            headers = {"a": "b" * 100}
            room = connector.features.bytes_max - sum(
                len(n) + len(v) + HEADER_OVERHEAD_BYTES for n, v in headers.items()
            )
            large = message(body=b"x" * room, headers=headers)
            await connector.send(topic, [large, message(body=b"small")])
            got = {each.message.id: each.message.body for each in await read(connector, topic, 2)}
        assert got[large.id] == large.body

    async def test_a_message_that_is_too_large_is_refused(self, factory: Factory, topic: str) -> None:
        """It is a clear error, nothing of the call is stored, and the connector goes on."""
        async with opened(factory) as connector:
            large = message(body=b"x" * (connector.features.bytes_max + 1))
            with pytest.raises(SyncKitError) as refused:
                await connector.send(topic, [message(body=b"before"), large])
            assert not refused.value.retryable
            await connector.send(topic, [message(body=b"after")])
            assert bodies(await read(connector, topic, 1)) == [b"after"]

    @pytest.mark.parametrize("name", ["a.b c/d*>~", "Ünïcode ✓", "x" * 100, "CON", ".", "sk", "A", "a"])
    async def test_any_topic_has_a_log_of_its_own(self, factory: Factory, topic: str, name: str) -> None:
        """Topics are any text; two of them never share a log."""
        unique = f"{topic[-12:]}{name}"[:100]
        async with opened(factory) as connector:
            await connector.send(unique, [message(body=b"mine")])
            await connector.send(unique + "-", [message(body=b"other")])
            await connector.announce(unique, "n", b"digest")
            assert bodies(await read(connector, unique, 1)) == [b"mine"]
            assert (await heard(connector, unique))["n"].body == b"digest"
            assert await heard(connector, unique + "-") == {}

    async def test_sending_nothing_does_nothing(self, factory: Factory, topic: str) -> None:
        """An empty call succeeds."""
        async with opened(factory) as connector:
            assert dict(await connector.send(topic, [])) == {}

    async def test_thousands_of_messages(self, factory: Factory, topic: str) -> None:
        """5,000 messages arrive once each, and the positions that `send` returns lie behind all of them."""
        sent = messages(5000)
        async with opened(factory) as connector:
            ends = await connector.send(topic, sent)
            got = await read(connector, topic, len(sent), batch_max=1000)
        assert sorted(bodies(got)) == sorted(each.body for each in sent)
        assert {each.partition for each in got} == set(ends)
        for partition, end in ends.items():
            assert max(each.position for each in got if each.partition == partition) <= end

    async def test_many_senders_at_once(self, factory: Factory, topic: str) -> None:
        """Concurrent calls on one connector do not disturb one another."""
        sent = messages(1000)
        async with opened(factory) as connector:
            await asyncio.gather(*(connector.send(topic, sent[at : at + 50]) for at in range(0, 1000, 50)))
            got = await read(connector, topic, len(sent))
        assert sorted(bodies(got)) == sorted(each.body for each in sent)

    # ------------------------------------------------------------------------------------------------------- features

    async def test_a_repeated_id(self, factory: Factory, topic: str) -> None:
        """With dedup, a message whose id the broker knows from an earlier call is refused; without, it is stored."""
        async with opened(factory) as connector:
            first = message(body=b"first")
            again = Message(first.id, "k", {}, b"again")
            await connector.send(topic, [first])
            if connector.features.dedup:
                with pytest.raises(Rejected, match="duplicate"):
                    await connector.send(topic, [again, message(body=b"other")])
                assert bodies(await read(connector, topic, 2)) == [b"first", b"other"]
            else:
                await connector.send(topic, [again])
                assert sorted(bodies(await read(connector, topic, 2))) == [b"again", b"first"]
