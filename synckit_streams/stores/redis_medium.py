"""A Redis server as a medium: whose the store there is, what is asked of it, and what became of a commit.

Theory of operation. The server is shared, may be put back, and may be lost in the middle of a commit. Against all that
stand two things: a *claim* that one process has, which ends by itself when it is not renewed, and a *head*, the name of
the last commit, which no other one ever had. A commit is a MULTI that is done only if nobody has touched the head or
the rows since the last one: the connection watches them (WATCH), and has seen the head as we left it. So a process that
slept through the end of its claim writes nothing once another one has taken the store, which renames the head.

Over each new connection the claim is taken again and the head renamed (`redis_scripts.TAKE`). What is still on its way
over a lost connection is then not done any more, and the head that was found says whether it had been. If it is neither
the one before nor the one after that commit, the server no longer has what it had: it is `moved`, and the store must
begin a new incarnation.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any, TypeVar

from synckit_streams.errors import StoreCorrupt, StoreInUse, StoreMissing, StoreUnavailable
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import redis_scripts as scripts
from synckit_streams.stores.kv_medium import PAGE_BYTES, Pair, Range
from synckit_streams.stores.redis_link import Link, is_lost
from synckit_streams.stores.redis_server import Server, look_at
from synckit_streams.stores.redis_url import Target

_log = logging.getLogger("synckit_streams.stores")

MARK = "synckit-streams"
SETTLE_S = 10.0
"""How long to try to learn what became of a commit whose connection was lost."""
SETTLE_AGAIN_S = 0.05
MEMBERS_TOGETHER = 100_000
"""So many arguments has a command; the server takes a million. Even, since some come in pairs."""
SIZE_SAMPLES = 1_000
"""So many rows are looked at to say how large a store is; the server's own five say anything."""
TRIES_MAX = 3
"""How often a commit is sent that turned out not to have arrived."""

OF_AGGREGATE_BYTES = 20
"""Of a value of `OF_AGGREGATE`, which stands behind its key in the order."""

_T = TypeVar("_T")


class RedisMedium:
    """See `Medium`.

    Args:
        target: Where it is.
        durability: See `RedisStoreOptions`.
        claim_ms: For how long the claim is good without being renewed.
        node: Who asks, for those who are refused.
        dice: For names that nobody else has.
        follow: Look on while somebody else has it, and write nothing.
    """

    def __init__(
        self,
        target: Target,
        *,
        durability: str,
        claim_ms: int,
        node: str,
        dice: Callable[[int], bytes],
        follow: bool = False,
    ) -> None:
        self._target = target
        self._name = str(target)
        self._durability = durability
        self._claim_ms = claim_ms
        self._follow = follow
        self._life = dice(16).hex()
        self._claim = f"{self._life} node {node}, process {os.getpid()} on {platform.node()}"
        self._writer = get_ident()
        self._writing = Link(target)
        self._reading = Link(target)
        self._named = 0
        self._head = ""
        """The last commit, as we left it."""
        self._taking = ""
        """The head with which we take the store, until that was answered."""
        self._last = 0
        """The last position that was ever written."""
        self._claimed = False
        self._watched = False
        """The connection watches what is ours, and it is as we left it."""
        self.moved = False
        """The server no longer has what we left there; see `begin_anew`."""
        self.server: Server

    # --- whose it is -------------------------------------------------------------------------------------------------

    def open(self) -> str:
        """Connect and take the store; gives what says that it was left clean on this very server, or "".

        Raises:
            StoreInUse: another process has it.
        """
        self._connect()
        marked = self._writing.ask("HGET", self._target.key("head"), "mark")
        if marked != MARK.encode() and self._writing.ask(
            "EXISTS", *(self._target.key(part) for part in ("", "order", "head"))
        ):
            raise StoreCorrupt(
                f"{self._name}: there are keys of another program",
                hint="give the store a name of its own: ?name=till-7",
            )
        if self._follow:
            if not marked:
                raise StoreMissing(f"there is no store at {self._name}")
            return ""
        clean, server = self._patiently_taken()
        self.moved = False
        ours = self.server.identity and server == f"{self.server.identity} {self._target.options.name}"
        return clean if ours else ""

    def close(self, clean: str) -> None:
        """Give it back, and leave what says that it was left clean, if there is something. May be called twice."""
        try:
            if self._claimed and self._writing.connected:
                server = f"{self.server.identity} {self._target.options.name}"
                self._writing.run(scripts.RELEASE, self._claim, "", self._head, "" if self.moved else clean, server)
        except Exception as error:  # noqa: BLE001 - the claim then ends by itself
            _log.info("%s: the claim could not be given back, and ends by itself: %s", self._name, error)
        finally:
            self._claimed = False
            self._writing.drop()
            self._reading.drop()

    def let_go(self) -> None:
        """Give the store back without a word about how it was left; it is taken again when it is needed."""
        self._claimed = False
        self._writing.run(scripts.RELEASE, self._claim, "", "", "", "")

    def _connect(self) -> None:
        if not self._writing.connected:
            self._claimed = self._watched = False  # so it was with the one that was lost
            self._writing.connect()
            try:
                self.server = look_at(self._writing, self._name, self._durability, to_read=self._follow)
            except BaseException:
                self._writing.drop()
                raise

    def _patiently_taken(self) -> tuple[str, str]:
        """Take it, as soon as nobody has it: a claim that is not renewed is of a process that has died."""
        last_ms = self._claim_ms * 1000
        while True:
            said, *rest = self._take()
            if said == "ours":
                return rest[1], rest[2]
            left_ms = int(rest[1])
            if left_ms > last_ms or left_ms < 0:
                raise self._in_use(rest[0])
            last_ms = left_ms
            time.sleep(min(SETTLE_AGAIN_S, left_ms / 1000))

    def _take(self) -> list[str]:
        """Take the store, over a connection that is there; see `redis_scripts.TAKE`."""
        self._taking = self._taking or self._new_head()
        found = self._run(scripts.TAKE, self._claim, self._claim_ms, self._taking, MARK)
        self._claimed = found[0] == "ours"
        if self._claimed:
            self._head, self._taking, self._last = self._taking, "", int(found[4])
            self._watched = False
        return found

    def _new_head(self) -> str:
        self._named += 1
        return f"{self._life}:{self._named}"

    def _run(self, script: scripts.Script, *arguments: Any) -> list[str]:
        return [
            each.decode() if isinstance(each, bytes) else str(each) for each in self._writing.run(script, *arguments)
        ]

    def _in_use(self, holder: str) -> StoreInUse:
        who = holder.partition(" ")[2] or "another program"
        return StoreInUse(
            f"{self._name} is in use ({who})",
            hint=f"one process has it: close the other one, or give this node a store of its own with ?name=; a "
            f"process that has died loses it within {self._claim_ms / 1000:g} s",
        )

    def ready(self) -> None:
        """See that there is a connection, and that the store is ours; sets `moved` if it is not as we left it.

        Raises:
            StoreInUse: another process has it.
        """
        self._settled("")

    def _settled(self, pending: str) -> bool:
        """The same when a commit may have been done: says whether it was."""
        self._connect()
        if self._claimed and not self._taking and not pending:
            return False
        if self._follow:
            return False
        left = self._head
        said, found, *_ = self._take()
        if said != "ours":
            raise self._in_use(found)
        self.moved = self.moved or found not in (left, pending)
        return bool(pending) and found == pending

    def renew(self) -> None:
        """Say that we are still there, and see that all is as we left it."""
        self.ready()
        said, found, *_ = self._run(scripts.RENEW, self._claim, self._claim_ms, self._head)
        self._heard(said, found)

    def _heard(self, said: str, found: str) -> None:
        """What a script that is fenced answered."""
        if said == "taken":
            self._claimed = False
            raise self._in_use(found)
        self.moved = self.moved or said == "moved"

    def begin_anew(self) -> None:
        """The store has begun a new incarnation with what is there now."""
        if self.moved:
            said, *rest = self._take()
            if said != "ours":
                raise self._in_use(rest[0])
            self.moved = False

    def _check_not_moved(self) -> None:
        if self.moved:
            raise StoreUnavailable(
                f"{self._name} no longer has what was there: the server was put back, emptied, or has lost what it had "
                "not yet saved; nothing of this call was written",
                hint="try again: the node goes on as a new incarnation, and gets what it had sent back from its peers",
            )

    # --- reading -----------------------------------------------------------------------------------------------------

    def _ask(self, work: Callable[[Link], _T]) -> _T:
        """What is only read may be asked again over another connection."""
        writing = get_ident() == self._writer
        link = self._writing if writing else self._reading
        for again in (True, False):
            try:
                if writing:
                    self.ready()
                else:
                    link.connect()
                return work(link)
            except Exception as error:
                if not again or not is_lost(error):
                    raise
        raise AssertionError  # for mypy: the second time it returns or raises

    def get_many(self, wanted: Sequence[bytes], /) -> Sequence[bytes | None]:
        """See `Medium`."""
        found = list(self._ask(lambda link: link.get_many(wanted)))
        in_order = [at for at, key in enumerate(wanted) if key[:1] == keys.OF_AGGREGATE]
        if in_order:
            ranges = [(wanted[at], wanted[at] + b"\xff" * OF_AGGREGATE_BYTES) for at in in_order]
            for at, pairs in zip(in_order, self.pages(ranges), strict=True):
                found[at] = pairs[0][1] if pairs else None
        return found

    def page(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Pair]:
        """See `Medium`. A range lies within the log, or has nothing of it."""
        tail: tuple[Any, ...] = (limit, PAGE_BYTES, int(reverse))
        if start[:1] == keys.EVENT:
            first, last = position_from(start), position_from(end) - 1
            rows = self._ask(lambda link: link.run(scripts.PAGE_OF_LOG, keys.EVENT, first, last, *tail))
        else:
            tail = (limit + 1, PAGE_BYTES, int(reverse))  # one of `OF_AGGREGATE` may be before the start, by its value
            rows = self._ask(lambda link: link.run(scripts.PAGE, start, end, *tail))
        return [pair for pair in self._pairs(rows[::2], rows[1::2]) if pair[0] >= start][:limit]

    def pages(self, ranges: Sequence[Range]) -> list[list[Pair]]:
        """See `Medium`."""
        rows = self._ask(lambda link: link.run(scripts.PAGES, *[bound for each in ranges for bound in each]))
        return [self._pairs(*each) for each in zip(rows[::2], rows[1::2], strict=True)]

    def size_bytes(self) -> int:
        """Of the server's memory, by a sample of the rows."""
        names = [self._target.key(part) for part in ("", "order", "head")]

        def usage(name: str) -> int:
            used: int | None = self._ask(lambda link: link.ask("MEMORY", "USAGE", name, "SAMPLES", str(SIZE_SAMPLES)))
            return used or 0

        return sum(map(usage, names))

    def _pairs(self, found: Sequence[bytes], values: Sequence[bytes | None]) -> list[Pair]:
        if found and found[0][:1] == keys.OF_AGGREGATE:
            return [(member[:-OF_AGGREGATE_BYTES], member[-OF_AGGREGATE_BYTES:]) for member in found]
        if len(found) != len(values) or None in values:
            raise StoreCorrupt(f"{self._name} is damaged: rows are missing that are in the order of its keys")
        return list(zip(found, values, strict=True))  # type: ignore[arg-type]

    # --- writing -----------------------------------------------------------------------------------------------------

    def commit(self, writes: Mapping[bytes, bytes | None]) -> None:
        """See `Medium`.

        Raises:
            StoreUnavailable: it was not done, or that cannot be known: the message says which.
            StoreInUse: another process has taken the store while we slept; nothing was written.
        """
        for _ in range(TRIES_MAX):
            self.ready()
            self._check_not_moved()
            head = self._new_head()
            try:
                self._try(writes, head)
                return
            except Exception:
                if self._writing.connected:  # refused
                    raise
                if self._was_done(head):
                    return
        raise StoreUnavailable(f"{self._name}: the connection is lost again and again; nothing was written")

    def _try(self, writes: Mapping[bytes, bytes | None], head: str) -> None:
        """One attempt; what it raises was not done, unless the connection was lost."""
        if not self._watched:
            self._seen(self._writing.ask_all([("UNWATCH",), *self._watch]))  # what was touched before is known
            if not self._watched:
                self._find_out()
        commands, last = commands_of(writes, self._writing.keys, self._last)
        _, _, of_head, claim = self._writing.keys
        answers = self._writing.ask_all(
            [
                ("MULTI",),
                *commands,
                ("HSET", of_head, "head", head, "last", last),
                ("SET", claim, self._claim, "PX", self._claim_ms),
                ("PUBLISH", self._target.key(), ""),
                ("EXEC",),
                *self._watch,
            ]
        )
        done = answers[-3]
        if isinstance(done, list):
            self._head, self._last = head, last
            self.moved = any(isinstance(answer, Exception) for answer in done)  # half of it: whatever there is now
        self._seen(answers)
        if done is None:  # somebody has touched what is ours
            self._find_out()
        # The first one that was refused is why the others were.
        for answer in (*answers[:-2], *(done if isinstance(done, list) else ())):
            if isinstance(answer, Exception):
                raise answer

    @property
    def _watch(self) -> list[tuple[str, ...]]:
        rows, order, head, _ = self._writing.keys
        return [("WATCH", rows, order, head), ("HGET", head, "head")]

    def _seen(self, answers: Sequence[Any]) -> None:
        """What the last two commands, those of `_watch`, have answered."""
        self._watched = answers[-2] == b"OK" and answers[-1] == self._head.encode()

    def check(self) -> None:
        """That all is as we left it.

        Raises:
            StoreUnavailable: it is not; nothing of the present transaction was written.
            StoreInUse: another process has it.
        """
        self.renew()
        self._check_not_moved()

    def _find_out(self) -> None:
        """Why we may not commit. Raises in any case."""
        said, found, *_ = self._run(scripts.RENEW, self._claim, self._claim_ms, self._head)
        self._heard(said, found)
        self.moved = True
        self._check_not_moved()

    def _was_done(self, head: str) -> bool:
        """Whether a commit was done whose connection was lost meanwhile.

        Raises:
            StoreUnavailable: that cannot be known, or the server no longer has what was there before it.
        """
        until = time.monotonic() + SETTLE_S
        while True:
            try:
                done = self._settled(head)
            except Exception as error:
                if isinstance(error, StoreInUse):
                    raise
                if time.monotonic() > until:
                    self.moved = True  # whatever it turns out to have
                    raise StoreUnavailable(
                        f"{self._name}: the connection was lost in the middle of a commit; whether it was done is not "
                        "known",
                        hint="a retry is safe for everything but drafts without an id: give those an id, or look for "
                        "them first",
                    ) from error
                time.sleep(SETTLE_AGAIN_S)
            else:
                self._check_not_moved()
                return done


def position_from(bound: bytes) -> int:
    """The least position whose key is not less than this; the number of positions for one behind them all.

    Args:
        bound: Of a range of the log.
    """
    if bound[:1] != keys.EVENT:
        return 2**53
    number: int = keys.number_of(bound[1:9].ljust(8, b"\0"))[0]
    return number + (len(bound) > 9)


def commands_of(
    writes: Mapping[bytes, bytes | None], names: Sequence[str], last: int
) -> tuple[list[tuple[Any, ...]], int]:
    """What a commit does to the rows and their order; see `redis_scripts` for what is where.

    Args:
        writes: Of the commit.
        names: Of rows and order, and more.
        last: The last position that was ever written; what is about a later one is new.

    Returns:
        The commands, and the last position that is now written.
    """
    rows, order, *_ = names
    put: list[bytes] = []
    gone: list[bytes] = []
    sorted_in: list[bytes] = []
    sorted_out: list[bytes] = []
    commands: list[tuple[Any, ...]] = []
    newest = last
    for key, value in writes.items():
        table = key[:1]
        if table == keys.OF_AGGREGATE:
            if value is None or keys.number_of(key[-8:])[0] <= last:
                commands.append(("ZREMRANGEBYLEX", order, b"[" + key, b"(" + key + b"\xff" * OF_AGGREGATE_BYTES))
            if value is not None:
                sorted_in += (b"0", key + value)
            continue
        if value is None:
            gone.append(key)
        else:
            put += (key, value)
        if table == keys.EVENT:
            newest = max(newest, keys.number_of(key[1:])[0])
        elif value is None:
            sorted_out.append(key)
        else:
            sorted_in += (b"0", key)
    for verb, name, members in (
        ("HDEL", rows, gone),
        ("ZREM", order, sorted_out),
        ("HSET", rows, put),
        ("ZADD", order, sorted_in),
    ):
        parts = (members[at : at + MEMBERS_TOGETHER] for at in range(0, len(members), MEMBERS_TOGETHER))
        commands += [(verb, name, *part) for part in parts]
    return commands, newest
