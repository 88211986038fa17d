"""Bugs that are planted into the shipped code, to see whether the simulator has teeth.

Each is a change that somebody could make in good faith, to one place or two. Most are found by playing seeds; those
that need a rare meeting of circumstances have a scripted scene (`scenes`) as well. What the names mean is in
docs/explanation/simulation.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from synckit_streams.testing.simulation.patching import Edit

ANNOUNCING = "synckit_streams.sync.announcing"
ARRIVALS = "synckit_streams.sync.arrivals"
CHANNEL = "synckit_streams.sync.channel"
CONFLICT = "synckit_streams.sync.conflict"
DRAFTS = "synckit_streams.sync.drafts"
ENVELOPE = "synckit_streams.runtime.envelope"
JOINING = "synckit_streams.sync.joining"
LEDGER = "synckit_streams.sync.ledger"
LEDGER_STORE = "synckit_streams.stores.ledger_store"
LINK = "synckit_streams.runtime.link"
MISPLACED = "synckit_streams.sync.misplaced"
MEMORY = "synckit_streams.stores.memory"
PROJECTOR = "synckit_streams.runtime.projector"
REPLICA = "synckit_streams.sync.replica"
RESOLVERS = "synckit_streams.sync.resolvers"
STREAM = "synckit_streams.sync.stream"
TURN = "synckit_streams.sync.turn"
VOIDS = "synckit_streams.sync.voids"
IDENTITY = "synckit_streams.stores.identity"


@dataclass(frozen=True)
class Planted:
    """One bug.

    Args:
        name: As `--planted` takes it.
        why: What is wrong with it, in a line.
        edits: The change.
        seeds: How many seeds it may take at most, from 0 on.
        profile: Which seeds find it best; "" for each seed's own profile.
        sooner: A seed of that profile that is known to find it quickly, and is played first.
        scene: The scripted scene that finds it; "" if seeds do.
    """

    name: str
    why: str
    edits: tuple[Edit, ...]
    seeds: int = 40
    profile: str = ""
    sooner: int = 0
    scene: str = ""


BUGS = (
    Planted(
        "effect-on-duplicate",
        "an event that comes twice is stored, and counted, twice",
        (
            Edit(ARRIVALS, "if (here and turn.hash_of(event.key) == hash) or (waiting", "if (waiting"),
            Edit(ARRIVALS, "        elif here:\n            turn.take(event, hash)\n", "        elif False:\n"),
        ),
        profile="rotation",
        sooner=3,
        seeds=1,
    ),
    Planted(
        "effect-on-twin",
        "a fact that was written on two nodes has its effect twice",
        (Edit(PROJECTOR, "for each in ours if not each.twin]", "for each in ours]"),),
        profile="rotation",
        sooner=6,
    ),
    Planted(
        "seen-by-max",
        "whoever has the last event is taken to have all before it",
        (Edit(STREAM, "            ranges.append((seq, seq))\n", "            ranges[:] = [(1, seq)]\n"),),
        profile="rotation",
        sooner=4,
        seeds=3,
    ),
    Planted(
        "text-counters",
        "counters are compared as text: 9 comes after 10",
        (
            Edit(
                CONFLICT,
                "left = [event for event in found if covered.get(event.origin, 0) < event.seq]",
                "left = [event for event in found if str(covered.get(event.origin, 0)) < str(event.seq)]",
            ),
        ),
        profile="rotation",
        sooner=35,
        seeds=4,
    ),
    Planted(
        "no-hold",
        "an event is stored before what its writer had read",
        (Edit(ARRIVALS, "        if cause is not None:\n", "        if False and cause is not None:\n"),),
        profile="rotation",
        sooner=10,
        seeds=5,
    ),
    Planted(
        "hold-ignores-after",
        "only the aggregate's own causes are waited for",
        (Edit(LEDGER, "        if event.after_bytes:\n", "        if False and event.after_bytes:\n"),),
        profile="rotation",
        sooner=21,
        seeds=8,
    ),
    Planted(
        "held-in-memory",
        "what waits for its cause is acknowledged, and is not on the disk",
        (Edit(ARRIVALS, "    turn.changes.held_added[hash] = event\n", ""),),
        profile="silent",
        sooner=7,
        seeds=14,
    ),
    Planted(
        "offset-before-commit",
        "the reader's offset is on the disk before what was read is",
        (
            Edit(
                MEMORY,
                '        yield\n        self._probe("commit")\n',
                "        yield\n        if self._gathered.changes is not None:\n"
                "            self.disk.offsets.update(self._gathered.changes.offsets)\n"
                '        self._probe("commit")\n',
            ),
        ),
        profile="silent",
        sooner=7,
        seeds=5,
    ),
    Planted(
        "effect-apart-from-offset",
        "a projection's effect commits, and then its offset does",
        (
            Edit(
                PROJECTOR,
                "            if offset != span.offset:\n",
                "        async with store.transaction() as tx:\n            if offset != span.offset:\n",
            ),
        ),
        scene="killed-at-each-commit",
    ),
    Planted(
        "answer-before-commit",
        "the writer is told that it is durable before it is",
        (
            Edit(
                LEDGER_STORE,
                "            for share, _ in group:\n                share.fail(failure)\n            return []\n",
                "            for share, turn in turns:\n"
                "                counts = [len(each.request.drafts) for each in share.appends]\n"
                "                results = turn.results({topic: ledger.summary(topic) for topic in turn.topics}, counts)\n"
                "                for append, result in zip(share.appends, results, strict=True):\n"
                "                    append.answer.value = result\n"
                "            for share, _ in group:\n"
                "                if not any(share is each and each.request.drafts for each, _ in turns):\n"
                "                    share.fail(failure)\n"
                "            return []\n",
            ),
        ),
        profile="rotation",
        sooner=10,
        seeds=6,
    ),
    Planted(
        "mirror-ahead-of-disk",
        "after a commit that failed, the ledger goes on as if it had not",
        (Edit(LEDGER_STORE, "        self._stale = self._stale or stale\n", ""),),
        profile="rotation",
        sooner=25,
    ),
    Planted(
        "place-of-what-waited",
        "an event that waited, and then met another one under its key, leaves its place to that one",
        (Edit(MISPLACED, "channel.link == cause.link and not held", "channel.link == cause.link"),),
        profile="silent",
        sooner=53,
        seeds=28,
    ),
    Planted(
        "acknowledge-before-commit",
        "what could not be committed is acknowledged, and the reader goes on",
        (
            Edit(
                LINK,
                "            result = await self._give(given)\n            assert result is not None\n",
                "            try:\n                result = await self._give(given)\n"
                "            except Exception:\n                return\n            assert result is not None\n",
            ),
        ),
        profile="silent",
        sooner=3,
        seeds=28,
    ),
    Planted(
        "partial-commit",
        "a commit that is broken off leaves a part of it behind",
        (
            Edit(MEMORY, '        yield\n        self._probe("commit")\n', "        yield\n"),
            Edit(
                MEMORY,
                "            self._put(row)\n        if origin:\n",
                "            self._put(row)\n"
                "            if row is changes.rows[len(changes.rows) // 2]:\n"
                '                self._probe("commit")\n'
                "        if origin:\n",
            ),
        ),
        profile="rotation",
        sooner=24,
        seeds=26,
    ),
    Planted(
        "no-clock-merge",
        "the hybrid clock takes no notice of what was read",
        (Edit(DRAFTS, "        if latest > clock:\n            clock = latest\n", ""),),
        profile="rotation",
        sooner=16,
        seeds=8,
    ),
    Planted(
        "arrival-order-tie-break",
        "of two writes at the same time, the one that came first wins",
        (
            Edit(
                CONFLICT,
                "    ordered = sorted(events, key=lambda event: event.canonical_order)\n",
                "    ordered = list(events)\n",
            ),
            Edit(
                CONFLICT,
                "    return tuple(sorted(left, key=lambda event: event.canonical_order))\n",
                "    return tuple(left)\n",
            ),
            Edit(
                RESOLVERS,
                "max(conflict.heads, key=lambda head: head.canonical_order)",
                "max(conflict.heads, key=lambda head: head.at_packed)",
            ),
        ),
        profile="rotation",
        sooner=10,
        seeds=15,
    ),
    Planted(
        "totals-added",
        "a read model adds what an aggregate resolves to, and does not take back what it added before",
        (
            Edit(
                PROJECTOR,
                "            previous = None if state is None else msgspec.json.decode(state)\n",
                "            previous = None\n",
            ),
        ),
        profile="rotation",
        sooner=10,
        seeds=77,
    ),
    Planted(
        "after-inside-context",
        "what an event must come after counts as read",
        (
            Edit(
                DRAFTS,
                "            latest = max(latest, turn.latest(Key(*cause) for cause in draft.after))\n",
                "            latest = max(latest, turn.latest(Key(*cause) for cause in draft.after))\n"
                "            read = dict(draft.context or (known.last if known is not None else {}))\n"
                "            for cause in draft.after:\n"
                "                if cause[0] == topic:\n"
                "                    read[cause[1]] = max(read.get(cause[1], 0), cause[2])\n"
                "            context = vector_bytes(read)\n",
            ),
        ),
        scene="after-is-not-read",
    ),
    Planted(
        "incarnation-never",
        "a store that was copied or put back goes on under its old origin",
        (
            Edit(
                MEMORY,
                'return origin if token and token == clean and node_of(origin) == opening.node else ""',
                'return origin if node_of(origin) == opening.node else ""',
            ),
        ),
        profile="faults",
        sooner=3,
        seeds=17,
    ),
    Planted(
        "incarnation-by-counter",
        "incarnations are counted, so that two copies count alike",
        (
            Edit(
                MEMORY,
                '        clean = meta.pop("clean", "")\n',
                '        clean = meta.pop("clean", "")\n        meta["lives"] = str(int(meta.get("lives", "0")) + 1)\n',
            ),
            Edit(
                LEDGER_STORE,
                "            draw_origin=lambda: new_origin(opening.node, opening.dice),\n",
                "            draw_origin=lambda: f\"{opening.node}@{self.disk.meta['lives']}\",  # type: ignore\n",
            ),
        ),
        profile="faults",
        sooner=18,
        seeds=30,
    ),
    Planted(
        "incarnation-at-open",
        "the incarnation is drawn when the store opens: a machine that is cloned before it writes has it twice",
        (
            Edit(
                LEDGER_STORE,
                "                    self._reload()\n                except BaseException:\n",
                "                    self._reload()\n                    self._ledger.own_origin()\n"
                "                except BaseException:\n",
            ),
        ),
        scene="clone-before-writing",
    ),
    Planted(
        "least-hash-ignored",
        "of two events under one key, each node keeps the one that came first",
        (Edit(TURN, "        if hash > there_hash:\n", "        if True:\n"),),
        profile="silent",
        sooner=10,
    ),
    Planted(
        "undecodable-blocks",
        "an event whose payload is not JSON is set aside",
        (
            Edit(
                ENVELOPE,
                "            right = event_hash(event) == hash\n",
                '            right = event_hash(event) == hash and event.payload[:1] == b"{"\n',
            ),
        ),
        profile="rotation",
        sooner=16,
        seeds=20,
    ),
    Planted(
        "suppress-for-ever",
        "what was once in the log is owed to nobody, also to those who have passed it by",
        (
            Edit(
                CHANNEL,
                "                threshold[partition] = max(position, threshold.get(partition, 0))\n",
                "                pass\n",
            ),
        ),
        profile="rotation",
        sooner=2,
        seeds=29,
    ),
    Planted(
        "no-place-in-digest",
        "a digest does not say where its reader stands, so that nothing in the log is ever owed to it",
        (Edit(ANNOUNCING, "            places=channel.next_positions(),\n", "            places={},\n"),),
        profile="rotation",
        sooner=22,
        seeds=8,
    ),
    Planted(
        "lag-taken-for-loss",
        "a peer is owed all that it lacks, also what it has yet to read in the log",
        (
            Edit(
                CHANNEL,
                "return lacks.minus(self.places.at_or_past(lacks, threshold)).minus(self.out)",
                "return lacks.minus(self.out)",
            ),
        ),
        profile="overload",
        sooner=2,
        seeds=8,
    ),
    Planted(
        "unsent-not-resent",
        "what was published and is not in the log is not published again",
        (
            Edit(CHANNEL, "                self.lost = self.lost.union(rest)\n", ""),
            Edit(
                CHANNEL,
                "self.unsent = due.minus(self.places.at_or_past(due, {})).minus(self.out)",
                "self.unsent = due.minus(self.places.at_or_past(due, {})).minus(self.out).minus(self.sent_before)",
            ),
        ),
        profile="silent",
        seeds=34,
    ),
    Planted(
        "unsent-forgotten",
        "what was written before the connection is not sent over it",
        (
            Edit(
                CHANNEL,
                "self.unsent = due.minus(self.places.at_or_past(due, {})).minus(self.out)",
                "self.unsent = self.unsent.minus(self.out)",
            ),
        ),
        profile="silent",
    ),
    Planted(
        "offset-unbound",
        "an offset counts for any log of that length: nobody looks whether the message is still the same",
        (
            Edit(
                LINK,
                "return None if message is None else fingerprint(message) == offset.fingerprint",
                "return None if message is None else True",
            ),
        ),
        scene="rewound-and-regrown",
    ),
    Planted(
        "publication-without-name",
        "an event that is published again is the same message as before",
        (Edit(ENVELOPE, '    digest.update(f"\\n{message.id}".encode(errors="backslashreplace"))\n', ""),),
        scene="same-event-same-place",
    ),
    Planted(
        "identity-ignored",
        "a log that was deleted and made again is read on from the old position",
        (Edit(JOINING, "    if stored.log != identity:\n", "    if False:\n"),),
        scene="recreated-and-trimmed",
    ),
    Planted(
        "no-prev",
        "an event may come before what the same writer did before on the aggregate",
        (Edit(LEDGER, "        if event.prev:\n", "        if False and event.prev:\n"),),
        scene="stale-read-overtakes",
    ),
    Planted(
        "no-void",
        "what nobody holds any more is waited for, for ever",
        (Edit(VOIDS, "        if not summary.wanted or not ready or", "        if True or"),),
        scene="cause-lost-with-its-disk",
    ),
    Planted(
        "doubt-not-looked-up",
        "a commit that failed in doubt is taken not to have happened",
        (Edit("synckit_streams.runtime.driver", "            self._lose_track(effect)\n", "            pass\n"),),
        scene="failed-and-written",
    ),
    Planted(
        "loser-read-as-winner",
        "what lost its key counts as read under it, and the event that keeps the key is never sent",
        (
            Edit(
                ARRIVALS,
                "            if place is not None and turn.hash_of(event.key) != hash:\n",
                "            if False:\n",
            ),
        ),
        profile="silent",
        sooner=4,
    ),
    Planted(
        "bridge-sends-back",
        "what came by a broker is sent there again",
        (
            Edit(
                CHANNEL,
                "        fresh = due.minus(self.places.at_or_past(due, {})).minus(self.out)\n",
                "        fresh = due.minus(self.out)\n",
            ),
        ),
        profile="bridge",
        seeds=1,
    ),
    Planted(
        "bridge-forgets-what-it-sent",
        "each time a bridge comes to a broker, all that it has is unsent there",
        (
            Edit(
                REPLICA,
                "        self._find_unsent(channel)\n        if offsets:\n",
                "        channel.unsent = self._due(given.topic)\n        if offsets:\n",
            ),
        ),
        profile="bridge",
        seeds=1,
    ),
    Planted(
        "bridge-passes-on-only-what-comes",
        "what a bridge took in while a broker was away does not go there later",
        (Edit(REPLICA, "        return seen if self._passes_on else", "        return"),),
        profile="bridges",
    ),
    Planted(
        "every-bridge-first",
        "of several bridges side by side each sends at once",
        (Edit(REPLICA, "        return self._reserved(channel, foreign)\n", "        return Seen()\n"),),
        profile="bridge",
    ),
    Planted(
        "place-of-the-other-variant",
        "where an event lay that lost its key, the one that has the key now is taken to lie",
        (Edit(REPLICA, "        effects += misplaced(result.reused, cause, self._channels.values())\n", ""),),
        profile="bridges",
        sooner=3,
    ),
)

BY_NAME = {bug.name: bug for bug in BUGS}
