"""What of a log every node has read, by what they said of it."""

from __future__ import annotations

import pytest

from synckit_streams.model.exchange import Bounds
from synckit_streams.model.seen import Seen
from synckit_streams.sync.channel import RETIRED_MS, Channel, Peer
from synckit_streams.sync.protocol import Digest

NOW_MS = 10 * RETIRED_MS


def said(position: int, *, log: str = "log", age_ms: int = 0, takes: bool = True) -> Peer:
    """A peer that will read there next."""
    digest = Digest(1, "peer", "t", 1, {}, True, bytes(32), {0: (log, position)}, [], [], 0, ("r", 1), takes)
    return Peer(digest, Seen(), NOW_MS - age_ms)


@pytest.mark.parametrize(
    ("peers", "wanted"),
    [
        pytest.param([], {}, id="nobody else"),
        pytest.param([said(41)], {0: 41}, id="one that has all"),
        pytest.param([said(41), said(17)], {0: 17}, id="the least"),
        pytest.param([said(41), said(1)], {}, id="one that has nothing"),
        pytest.param([said(99)], {0: 41}, id="never beyond what we have read"),
        pytest.param([said(41), said(41, log="another")], {}, id="one that stands in another log"),
        pytest.param([said(41), said(5, age_ms=RETIRED_MS + 1)], {0: 41}, id="one that was silent for a week"),
        pytest.param([said(41), said(5, age_ms=RETIRED_MS)], {0: 5}, id="one that was silent for nearly a week"),
        pytest.param([said(5, age_ms=RETIRED_MS + 1)], {}, id="nobody but one that was silent"),
        pytest.param([said(41), said(5, takes=False)], {0: 41}, id="one that takes nothing"),
    ],
)
def test_what_everybody_has_read(peers: list[Peer], wanted: dict[int, int]) -> None:
    channel = Channel("link", "t")
    channel.capture({0: Bounds("log", 1, 41)})
    channel.position[0] = 40
    channel.peers = {str(at): peer for at, peer in enumerate(peers)}
    assert channel.read_by_all(NOW_MS) == {}  # not joined: it may be another log by now
    channel.joined = True
    assert channel.read_by_all(NOW_MS) == wanted


def test_what_was_trimmed_is_not_trimmed_again() -> None:
    channel = Channel("link", "t")
    channel.capture({0: Bounds("log", 41, 41)})
    channel.position[0] = 40
    channel.joined = True
    channel.peers = {"a": said(41)}
    assert channel.read_by_all(NOW_MS) == {}
