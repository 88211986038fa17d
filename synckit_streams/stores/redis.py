"""A store on a Redis server, for one process at a time.

What is put where is the same for every key-value store (`kv_store`). Whose it is, whether the server still has what it
had, and what became of a commit is in `redis_medium`; how safe the server keeps what it has, in `redis_server`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from synckit_streams.errors import StoreError, StoreInUse
from synckit_streams.ports.store import Opening, StoreFeatures
from synckit_streams.stores.block import Block
from synckit_streams.stores.kv_store import KeyValueStore, check_schema
from synckit_streams.stores.ledger_store import Probe
from synckit_streams.stores.redis_link import Link, require_redis, translate
from synckit_streams.stores.redis_medium import RedisMedium
from synckit_streams.stores.redis_url import check_promises, parse_url
from synckit_streams.sync.ledger import Changes, Ledger
from synckit_streams.sync.turn import Turn

LISTEN_CHECK_S = 0.2

_log = logging.getLogger("synckit_streams.stores")
_warned: set[str] = set()
"""Which stores this process has said of that they may lose something."""


class RedisStore(KeyValueStore):
    """A store on a Redis server.

    Args:
        url: `redis://user:password@host:port/database` (`rediss://` for TLS), with `?name=till-7&durability=full` if
            one likes; see `RedisStoreOptions`.
        durability: Instead of the URL's.
        claim_s: Instead of the URL's.
        read_only: See `EventStore`.
        probe: See `Probe`.

    Raises:
        ConfigError: the URL or an option is wrong.
        MissingDependency: redis-py is not installed.
    """

    medium: RedisMedium

    def __init__(
        self,
        url: str,
        *,
        durability: str | None = None,
        claim_s: float | None = None,
        read_only: bool = False,
        probe: Probe | None = None,
    ) -> None:
        require_redis()
        self._target = parse_url(url)
        options = self._target.options
        self._durability = options.durability if durability is None else durability
        self._claim_s = options.claim_s if claim_s is None else claim_s
        check_promises(self._durability, self._claim_s)
        super().__init__(str(self._target), read_only=read_only, threads=True, probe=probe)
        self.features = StoreFeatures(durable=self._durability == "full", listen=True, leases=True)
        self._beat: Beat | None = None
        self._given = 0
        """The last position that anybody was told of."""

    def _translate(self, error: BaseException) -> BaseException:
        return translate(super()._translate(error), self.name)

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _open_medium(self, opening: Opening) -> str:
        self._given = 0
        medium = self.medium = RedisMedium(
            self._target,
            durability=self._durability,
            claim_ms=int(self._claim_s * 1000),
            node=opening.node,
            dice=opening.dice,
            follow=self.read_only,
        )
        try:
            token = medium.open()
        except BaseException:
            medium.close("")
            raise
        self.features = StoreFeatures(durable=medium.server.durable, listen=True, leases=True)
        if medium.server.risk and str(self._target) not in _warned:
            _warned.add(str(self._target))
            _log.warning(
                "%s: %s. For appends that last: `appendonly yes` and `appendfsync always` on the server",
                self.name,
                medium.server.risk,
            )
        if self.read_only:
            self._beat = Beat(self._listen)
        else:
            self._beat = Beat(self._keep_claim)
        return token

    def _close_medium(self, token: str) -> None:
        if self._beat is not None:
            self._beat.end()
            self._beat = None
        self.medium.close(token)

    def _keep_claim(self, over: threading.Event) -> None:
        while not over.wait(self._claim_s / 3):
            writes = self._writes
            if writes is None:
                return
            with suppress(RuntimeError):  # it was closed just now
                writes.submit(self._renew)

    def _renew(self) -> None:
        """On the writer's thread."""
        with suppress(Exception):  # whoever writes next hears of it
            self.medium.renew()
        self._stale = self._stale or self.medium.moved

    def _listen(self, over: threading.Event) -> None:
        while not over.is_set():
            link = Link(self._target)
            with suppress(Exception):
                link.connect()
                link.subscribe(self._target.key())
                self._bell.ring()  # whatever was written while nobody listened
                while not over.is_set():
                    if link.heard(LISTEN_CHECK_S):
                        self._bell.ring()
            link.drop()
            over.wait(LISTEN_CHECK_S)

    async def size_bytes(self) -> int:
        """See `EventStore`: of the server's memory."""
        return await self._read(lambda: self.medium.size_bytes())

    # --- where the server was put back -------------------------------------------------------------------------------

    def _load(self, ledger: Ledger, node: str) -> None:
        self._follow_server()
        super()._load(ledger, node)
        # A reader who stands where nothing is any more must not take what comes there next for what he has seen.
        ledger.position = self._given = max(ledger.position, self._given)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            try:
                yield
            except Exception:
                self.medium.check()  # if what was read is not what we left, that is what is wrong
                raise

    def _begin(self) -> None:
        super()._begin()
        self._follow_server()

    def _finish_block(self, block: Block) -> tuple[Changes, Turn] | None:
        try:
            return super()._finish_block(block)
        except Exception:
            self.medium.check()
            raise

    def _end(self, *, commit: bool) -> None:
        super()._end(commit=commit)
        self._given = max(self._given, self._ledger.position)

    def _follow_server(self) -> None:
        """Go on as another incarnation with what the server has, if that is not what we left there."""
        if self.read_only:
            return
        medium = self.medium
        medium.ready()
        if not medium.moved:
            return
        if self._block is not None:  # it has read what is there no more, and must not be written on what is there now
            medium.check()
        assert self._opening is not None
        meta = check_schema(medium, self.name)
        self._stale = True
        if meta.get("node", self._opening.node) != self._opening.node:
            medium.let_go()
            raise StoreInUse(f"{self.name} has been taken by the node {meta['node']}")
        if meta.get("store", self.id) != self.id:
            raise StoreError(f"{self.name} is another store now", hint="open it again to go on with that one")
        medium.begin_anew()
        _log.warning(
            "%s: the server no longer has what was there, by restart, restore or another process; the node goes on as "
            "a new incarnation; what it had sent comes back from its peers",
            self.name,
        )
        self._begin_life({**meta, "store": self.id}, self._opening, "")
        self._origin = ""


class Beat:
    """A thread that does something beside the store until it ends.

    Args:
        work: Called once, with what says that it is over.
    """

    def __init__(self, work: Callable[[threading.Event], None]) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=work, args=(self._over,), name="synckit-beat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait for it."""
        self._over.set()
        self._thread.join()
