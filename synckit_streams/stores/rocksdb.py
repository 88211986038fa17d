"""A store in a RocksDB database: one folder, one process, for much that is written.

What is put where is the same for every key-value store (`kv_store`), what RocksDB does is in `rocksdb_medium`. Whose
the folder is, and whether it was left clean, is answered beside it, as for a SQLite file (`claim`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from synckit_streams.errors import ConfigError
from synckit_streams.ports.store import Opening, StoreFeatures
from synckit_streams.stores.claim import FileClaim
from synckit_streams.stores.file_url import parse_path
from synckit_streams.stores.kv_store import KeyValueStore
from synckit_streams.stores.ledger_store import Probe
from synckit_streams.stores.rocksdb_medium import RocksMedium, require_rocksdict, translate

_HINT = "write rocksdb:///till, or rocksdb:////var/lib/till for an absolute path"


class RocksDbStore(KeyValueStore):
    """A store in one folder, a RocksDB database.

    Args:
        url: `rocksdb:///relative/folder` or `rocksdb:////absolute/folder`, with `?sync=no` if one likes. A `?`, `#` or
            `%` in the path is written `%3F`, `%23` or `%25`.
        sync: True (default): what was appended survives the loss of power. False: it survives a crash of the process,
            and the loss of power up to what the system had written by itself.
        read_only: See `EventStore`.
        threads: False runs everything in the caller, for a simulation.
        probe: See `Probe`.

    Raises:
        StoreInUse: another node has the folder.
        ConfigError: the URL or an option is wrong.
        MissingDependency: rocksdict is not installed.
    """

    medium: RocksMedium

    def __init__(
        self,
        url: str,
        *,
        sync: bool | None = None,
        read_only: bool = False,
        threads: bool = True,
        probe: Probe | None = None,
    ) -> None:
        require_rocksdict()
        self.path, options = parse_path(url, {"sync": "yes"}, hint=_HINT)
        if options["sync"] not in ("yes", "no"):
            raise ConfigError(f"sync={options['sync']} is unknown", hint="write sync=yes or sync=no")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{url!r} names a file", hint=f"a RocksDB store is a folder: {_HINT}")
        super().__init__(str(self.path), read_only=read_only, threads=threads, probe=probe)
        self._sync = options["sync"] == "yes" if sync is None else sync
        self.features = StoreFeatures(durable=self._sync, leases=True)
        self._claim = None if read_only else FileClaim(self.path)

    def _claim_for(self, node: str) -> None:
        if self._claim is not None:
            self._claim.lock(node)

    def _unclaim(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def _translate(self, error: BaseException) -> BaseException:
        return translate(super()._translate(error), self.path)

    def _begin(self) -> None:
        super()._begin()
        if self.medium.mend():
            self._stale = True

    def _open_medium(self, opening: Opening) -> str:
        token = self._claim.consume_token() if self._claim is not None else ""
        self.medium = RocksMedium(self.path.absolute(), sync=self._sync, follow=self.read_only)
        self.medium.open()
        return token

    def _close_medium(self, token: str) -> None:
        if token:
            try:
                self.medium.flush()
            except Exception:  # noqa: BLE001 - what cannot be brought to its place is not left clean, nothing else
                token = ""
        self.medium.close()
        if token and self._claim is not None:
            with suppress(OSError):
                self._claim.leave_token(token)

    async def size_bytes(self) -> int:
        """See `EventStore`."""
        self._opened()
        return sum(each.stat().st_size for each in self.path.iterdir())

    def checkpoint(self, target: Path) -> None:
        """A whole copy of the store as it is at this moment, while it is open: for a backup.

        It costs little: files that never change are linked, not copied, if the target is on the same disk. The copy is
        a store of its own, which writes under a new incarnation. Reads wait meanwhile. From any thread.

        Args:
            target: A folder that does not exist yet; the folder around it does.

        Raises:
            StoreError: it exists, or cannot be made.
            StoreClosed: the store is not open.
        """
        self._opened()
        try:
            self.medium.checkpoint(target.absolute())
        except Exception as error:
            raise self._translate(error) from error
