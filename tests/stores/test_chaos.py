"""kill -9, again and again: of the process that writes, and of the server that has its store.

A process appends, half of the time with an effect, and says what was acknowledged; ids name life, caller, call and
part, so the log itself tells what was asked for. Whatever was asked and not answered is asked again: by the same
process when its server died, by the next one when it died itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from synckit_streams.model.event import Stored
from synckit_streams.runtime.moving import pages_of_notes
from synckit_streams.runtime.registry import store_for
from synckit_streams.testing.server import Server
from synckit_streams.testing.store_contract import audit, opening
from tests.stores.child import is_block
from tests.stores.kinds import KINDS, place_of
from tests.stores.processes import child, end

DEADLINE_S = 60.0
CALLERS = 3
PARTS = 2


class Calls:
    """Who asked for what: callers whose calls have a life and a number."""

    def __init__(self) -> None:
        self.acknowledged: set[tuple[int, int, int]] = set()
        self.pending = [(0, 0)] * CALLERS
        """Of each caller the call that is on its way."""

    def note(self, life: int, caller: int, number: int, *, this_life: int) -> None:
        """What a process of this life said."""
        assert self.pending[caller] == (life, number)
        self.acknowledged.add((life, caller, number))
        self.pending[caller] = (life, number + 1) if life == this_life else (this_life, 0)


class Writing:
    """A process that writes, and what it said so far.

    Args:
        url: Of its store.
        life: Its number.
        calls: What to begin with, and where to note what was acknowledged.
    """

    def __init__(self, url: str, life: int, calls: Calls) -> None:
        code = "asyncio.run(write_calls(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))"
        self._process = child(code, url, PARTS, json.dumps([*calls.pending, (life, 0)]))
        self._life = life
        self._calls = calls
        self._said = 0
        self._more = threading.Condition()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # it may have been killed in the middle of one
                life, caller, number = map(int, line.split())
                with self._more:
                    self._calls.note(life, caller, number, this_life=self._life)
                    self._said += 1
                    self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def wait(self, calls: int) -> None:
        """Until so many more calls were acknowledged."""
        with self._more:
            wanted = self._said + calls
            there = self._more.wait_for(
                lambda: self._said >= wanted or not self._listener.is_alive() or self._process.poll() is not None,
                DEADLINE_S,
            )
            assert there, "nothing was acknowledged for long"
            assert self._said >= wanted, f"the process ended by itself: {self._process.poll()}"

    def kill(self) -> None:
        """With SIGKILL; what it had said before is noted."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._listener.join(DEADLINE_S)
        end(self._process)


def survive(url: str, server: Server | None, *, seed: int, kills: int) -> Calls:
    """So many kills at moments that the seed draws; gives the calls that were asked for."""
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    dice = random.Random(seed)
    calls = Calls()
    life = 0
    writing = Writing(url, life, calls)
    try:
        for _ in range(kills):
            writing.wait(dice.randint(1, 30))
            moment = time.monotonic() + dice.random() * 0.01
            while time.monotonic() < moment:
                pass
            who = dice.choice(("process", "server", "both")) if server is not None else "process"
            if server is not None and who != "process":
                server.kill()
            if who != "server":
                writing.kill()
            if server is not None:
                server.start()
            if who != "server":
                life += 1
                writing = Writing(url, life, calls)
        writing.wait(1)
    finally:
        writing.kill()
    return calls


def check(log: list[Stored], noted: set[str], calls: Calls) -> None:
    """Every call that was acknowledged is there once and whole, and nothing that was never asked for; and each event of
    a block with its note."""
    parts: Counter[tuple[int, int, int]] = Counter()
    ids = Counter(each.event.id for each in log)
    assert set(ids.values()) == {1}, f"doubled: {[id for id, times in ids.items() if times > 1]}"
    for id in ids:
        life, caller, number, _ = map(int, id.split("/"))
        parts[life, caller, number] += 1
    assert set(parts.values()) == {PARTS}, "half a call"
    blocks = {f"{life}/{caller}/{number}/0" for life, caller, number in parts if is_block(caller, number)}
    assert noted == blocks, "an effect without its events, or the other way round"
    lost = calls.acknowledged - set(parts)
    assert not lost, f"lost: {sorted(lost)}"
    on_its_way = {(life, caller, number) for caller, (life, number) in enumerate(calls.pending)}
    strange = set(parts) - calls.acknowledged - on_its_way
    assert not strange, f"never asked for: {sorted(strange)}"
    origins: dict[str, list[int]] = {}
    for each in log:
        origins.setdefault(each.event.origin, []).append(each.event.seq)
    for origin, numbers in origins.items():
        assert numbers == list(range(1, len(numbers) + 1)), f"{origin} has a gap, or its log is out of order"


async def chaos(kind: str, request: pytest.FixtureRequest, folder: Path, kills: int) -> None:
    """Kill, then look."""
    url, server = place_of(kind, request, folder)
    calls = survive(url, server, seed=random.SystemRandom().randrange(2**32), kills=kills)
    store = store_for(url)
    await store.open(opening("writer"))
    try:
        noted = [page async for page in pages_of_notes(store, "blocks")]
        check(await audit(store), {aggregate_id for page in noted for _, aggregate_id, _ in page}, calls)
    finally:
        await store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_kills_lose_and_double_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Five kills, for every run of the tests."""
    await chaos(kind, request, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
async def test_forty_kills_lose_and_double_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The same at forty moments."""
    await chaos(kind, request, tmp_path, 40)
