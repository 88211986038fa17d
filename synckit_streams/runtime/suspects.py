"""Events of which a process has died, perhaps: who they are is found out by trying each of them alone.

When a process ends without a word, all that its strands had in hand is suspect. A suspect is tried again with nothing
else under way in its group, so that, if the process dies once more, it was this one: only then an attempt is counted.
If it does not, it is acquitted. Of a batch any event may have been it; the next ones are done one by one.
"""

from __future__ import annotations

import asyncio

from synckit_streams.runtime.in_hand import InHand, Trace


class Suspects:
    """See the module's text.

    Args:
        in_hand: What this process has in hand, and where others have left their traces.
        strands: How many work side by side; a single one is always alone.
    """

    def __init__(self, in_hand: InHand, strands: int) -> None:
        self.in_hand = in_hand
        self._strands = strands
        self._traces: dict[int, list[Trace]] = {}
        self._met: set[Trace] = set()
        self._working = 0
        self._calm = asyncio.Event()
        self._alone: object = None

    def look(self) -> bool:
        """See what others left who are gone; gives whether one of them died of a batch."""
        batch = False
        for trace in self.in_hand.left_behind():
            if trace.events > 1:
                batch = True
                trace.wipe()
            elif trace not in self._met:
                self._met.add(trace)
                self._traces.setdefault(trace.first, []).append(trace)
        return batch

    def clear(self) -> None:
        """They are looked for anew: what was to be counted may not be on the disk."""
        self._traces.clear()
        self._met.clear()
        self._working, self._alone = 0, None

    def __bool__(self) -> bool:
        return bool(self._traces)

    def __contains__(self, position: int) -> bool:
        return position in self._traces

    def deaths(self, position: int) -> list[Trace]:
        """Of those who died of it, and of nothing else, the ones that nobody has counted; once."""
        traces = [each for each in self._traces.pop(position) if each.there]
        if rest := [each for each in traces if not each.alone]:
            self._traces[position] = rest
        return [each for each in traces if each.alone]

    def acquit(self, position: int) -> list[Trace]:
        """It is none any more; gives the traces, to be wiped out when that is on the disk."""
        return self._traces.pop(position, [])

    # --- alone -------------------------------------------------------------------------------------------------------

    def come(self, strand: object) -> bool:
        """A strand begins a unit; not while another one is to be alone."""
        if self._alone is not None:
            return False
        self._working += 1
        return True

    def go(self, strand: object) -> bool:
        """Its unit has ended; gives whether it was alone, and others wait."""
        self._working -= 1
        self._calm.set()
        if self._alone is not strand:
            return False
        self._alone = None
        return True

    async def alone(self, strand: object) -> bool:
        """Wait until nobody else has a unit; gives False at once if somebody else waits for that."""
        if self._alone is not None:
            return False
        self._alone = strand
        while self._working > 1:
            self._calm.clear()
            await self._calm.wait()
        return True

    def is_alone(self, strand: object) -> bool:
        """Whether it is to be alone for the rest of its unit."""
        return self._alone is strand

    def take(self, strand: object, number: int, first: int, events: int) -> None:
        """A strand begins a call."""
        self.in_hand.take(number, first, events, alone=self._strands == 1 or self._alone is strand)
