"""For connectors: what a broker does not offer, said in the one way in which whoever asks for it is told."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from synckit_streams.errors import FeatureUnsupported
from synckit_streams.ports.connector import Member, Progress


class WithoutGroups:
    """`join`, `tap` and `progress` of a connector whose `features.groups` and `features.taps` are False."""

    def join(
        self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int
    ) -> AbstractAsyncContextManager[Member]:
        """Raises FeatureUnsupported."""
        raise self._unsupported()

    def tap(
        self, source: str, *, group: str, batch_max: int, at_ms: int | None = None
    ) -> AbstractAsyncContextManager[Member]:
        """Raises FeatureUnsupported."""
        raise self._unsupported()

    async def progress(self, topic: str, *, group: str) -> Progress:
        """Raises FeatureUnsupported."""
        raise self._unsupported()

    def _unsupported(self) -> FeatureUnsupported:
        return FeatureUnsupported(f"{type(self).__name__} has no groups", hint="read as a replica: without a group")


class WithoutTrimming:
    """`trim` of a connector whose `features.trims` is False."""

    async def trim(self, topic: str, *, below: Mapping[int, int]) -> None:
        """Raises FeatureUnsupported."""
        raise FeatureUnsupported(
            f"{type(self).__name__} does not trim a log by what everybody has",
            hint="let the broker's own retention do it",
        )


class WithoutTimes:
    """`find` of a connector whose `features.times` is False."""

    async def find(self, topic: str, *, at_ms: int) -> Mapping[int, int]:
        """Raises FeatureUnsupported."""
        raise FeatureUnsupported(
            f"{type(self).__name__} does not know when its messages came", hint="begin at a position, or at the first"
        )
