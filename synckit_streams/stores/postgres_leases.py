"""Leases in a PostgreSQL database: rows that all processes see, by the server's clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from synckit_streams.ports.store import Lease
from synckit_streams.stores.leases import Leasing, check_names, check_ttl
from synckit_streams.stores.postgres_line import Line
from synckit_streams.stores.postgres_schema import Statements, check_name

_T = TypeVar("_T")


class PostgresLeasing(Leasing):
    """The part of a `PostgresStore` that gives leases: each call is one statement."""

    line: Line
    _statements: Statements

    async def _read(self, shape: Callable[[list[Any]], _T], sql: str, *parameters: Any) -> _T:
        raise NotImplementedError

    def _hold(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        rows = self.line.fetch(self._statements.hold_leases, *_columns(leases))
        return _of(leases, rows)

    async def lease(self, names: Sequence[str], holder: str, *, ttl_s: float) -> Sequence[Lease]:
        """See `EventStore`."""
        self._leasing()
        check_names(names)
        check_ttl(ttl_s)
        asked = list(dict.fromkeys(names))
        for name in (*asked, holder):
            check_name(name)
        tokens = dict(await self._read(list, self._statements.take_leases, asked, holder, ttl_s))
        return [Lease(name, holder, tokens[name]) for name in asked if name in tokens]

    async def renew(self, leases: Sequence[Lease], *, ttl_s: float) -> Sequence[Lease]:
        """See `EventStore`."""
        self._leasing()
        check_ttl(ttl_s)
        asked = tuple(leases)
        return _of(asked, await self._read(list, self._statements.renew_leases, *_columns(asked), ttl_s))

    async def release(self, leases: Sequence[Lease]) -> None:
        """See `EventStore`."""
        self._leasing()
        await self._read(list, self._statements.release_leases, *_columns(leases))

    async def leases(self, prefix: str) -> Sequence[Lease]:
        """See `EventStore`."""
        check_name(prefix)  # whoever only reads may ask, too
        return await self._read(lambda rows: [Lease(*row) for row in rows], self._statements.leases, prefix)


def _columns(leases: Sequence[Lease]) -> tuple[list[str], list[int]]:
    return [each.name for each in leases], [each.token for each in leases]


def _of(leases: Sequence[Lease], rows: Sequence[Any]) -> list[Lease]:
    """Those whose names and tokens are in the rows."""
    found = {tuple(row) for row in rows}
    return [each for each in leases if (each.name, each.token) in found]
