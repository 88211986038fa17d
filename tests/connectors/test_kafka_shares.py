"""What is open in a member's hands, against a model that knows only sets."""

from __future__ import annotations

import random

import pytest

from synckit_connectors.kafka_shares import Share, Shares
from synckit_connectors.kafka_wire import mark_of
from synckit_streams.ports.connector import Delivery, Message

WAIT_S = 10.0


def read(number: int, position: int) -> tuple[Delivery, int]:
    body = b"%d/%d" % (number, position)
    return Delivery(Message("", "", {}, body), number, position), 1000 + position


@pytest.mark.parametrize("seed", range(200))
def test_the_position_never_passes_what_is_not_done(seed: int) -> None:
    """Whatever is read, handed out, acknowledged, put off, extended and forgotten, in whatever order.

    By the model a position is done if it was acknowledged after it was read; the group's position is the last one below
    which every position that was ever read is done.
    """
    dice = random.Random(seed)
    shares = Shares(batch_max=dice.randint(1, 5), wait_s=WAIT_S)
    log = {number: sorted(dice.sample(range(1, 100), 60)) for number in (0, 1)}  # with gaps, as after compaction
    shares.of = {number: Share(0) for number in log}
    read_to = dict.fromkeys(log, 0)
    done: dict[int, set[int]] = {number: set() for number in log}
    handed: list[Delivery] = []
    delivered: dict[tuple[int, int], int] = {}
    now = 0.0
    for _ in range(400):
        now += dice.random()
        number = dice.choice([0, 1])
        match dice.choice(["take", "next", "ack", "nack", "extend", "again"]):
            case "take":
                more = [each for each in log[number] if each > read_to[number]][: dice.randint(1, 5)]
                if more:
                    shares.take(number, [read(number, each) for each in more])
                    read_to[number] = more[-1]
            case "next":
                for each in (batch := shares.hand(shares.next(now), now)):
                    where = (each.partition, each.position)
                    delivered[where] = delivered.get(where, 0) + 1
                    assert each.attempt == delivered[where]
                    assert each.position not in done[each.partition]
                assert len({each.partition for each in batch}) <= 1
                assert [each.position for each in batch] == sorted({each.position for each in batch})
                handed += batch
            case "ack" if handed:
                some = dice.sample(handed, dice.randint(1, len(handed)))
                shares.settle(some)
                for each in some:
                    done[each.partition].add(each.position)
            case "nack" if handed:
                shares.put_off(dice.sample(handed, 1), now + dice.random() * WAIT_S, in_hand=False)
            case "extend" if handed:
                shares.extend(dice.sample(handed, 1), now)
            case "again":
                now += WAIT_S
        for at, share in shares.of.items():
            missing = [each for each in log[at] if each <= read_to[at] and each not in done[at]]
            assert share.done == (missing[0] - 1 if missing else read_to[at])
    # In the end everything comes, and is done.
    for _ in range(1000):
        now += WAIT_S
        shares.settle(shares.hand(shares.next(now), now))
    assert {at: share.done for at, share in shares.of.items()} == read_to
    assert not shares.open


def test_the_note_says_what_lies_at_the_position() -> None:
    """The next message that is not done, or else the last one that was read; nothing before anything was."""
    share = Share(0)
    assert share.note == ""
    shares = Shares(batch_max=10, wait_s=WAIT_S)
    shares.of = {0: share}
    deliveries = [read(0, position) for position in (1, 2, 3)]
    shares.take(0, deliveries)
    shares.settle([deliveries[0][0]])
    assert share.note == f"next {mark_of(1002, b'0/2')}"
    shares.settle([each for each, _ in deliveries])
    assert (share.done, share.note) == (3, f"last {mark_of(1003, b'0/3')}")


def test_a_new_group_passes_what_lies_before_its_start() -> None:
    """Also what comes only afterwards: a start may lie beyond the end."""
    share = Share(2, passed=4, known=False)
    shares = Shares(batch_max=10, wait_s=WAIT_S)
    shares.of = {0: share}
    assert shares.owed
    shares.take(0, [read(0, 3), read(0, 4)])
    assert shares.next(0.0) == []
    assert share.done == 4
    shares.take(0, [read(0, 4), read(0, 5)])
    assert [each.position for each in shares.hand(shares.next(0.0), 0.0)] == [5]


def test_what_was_lost_meanwhile_is_not_handed_out() -> None:
    """A batch that was read for somebody who gave up waiting, and is another's now."""
    shares = Shares(batch_max=10, wait_s=WAIT_S)
    shares.of = {0: Share(0)}
    shares.take(0, [read(0, 1), read(0, 2)])
    batch = shares.next(0.0)
    shares.drop()
    assert shares.hand(batch, 0.0) == []
    shares.of = {0: Share(0)}
    shares.take(0, [read(0, 1)])
    assert shares.hand(batch, 0.0) == []
    shares.settle([held.delivery for held in batch])
    assert shares.of[0].done == 1
