"""The simulator replays, counts what is wrong by itself, and finds the bugs that are planted into the shipped code."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from synckit_streams.errors import ConfigError
from synckit_streams.model.clock import Key
from synckit_streams.testing.simulation.breakage import Breakage
from synckit_streams.testing.simulation.disk import Disk, InMemory
from synckit_streams.testing.simulation.patching import Edit, Stale, changed, sources
from synckit_streams.testing.simulation.planted import Planted
from synckit_streams.testing.simulation.profiles import histories_of, plan_of
from synckit_streams.testing.simulation.scenes import Scene
from synckit_streams.testing.simulator import (
    BUGS,
    FAULTS,
    PROFILES,
    SCENES,
    Outcome,
    Simulation,
    Tally,
    bug_named,
    diff_of,
    hunt,
    play,
    play_many,
    play_scene,
)

QUIET = (0, "quiet")
REPLAYED = ((7, "faults"), (4, "silent"), (3, "rotation"), QUIET)
"""One seed of each kind; the first one is on SQLite."""

ROOT = Path(__file__).parents[2]


def story(seed: int, profile: str) -> str:
    """Everything that happened, as one number."""
    outcome = play(seed, profile, trace=True)
    told = (outcome.timeline, outcome.reasons, outcome.events, outcome.published, sorted(outcome.faults.items()))
    return hashlib.sha256(repr(told).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------- replays


def test_a_seed_plays_the_same_history_again() -> None:
    assert [story(*each) for each in REPLAYED] == [story(*each) for each in REPLAYED]


def test_a_seed_plays_the_same_history_in_another_process() -> None:
    """Nothing of it hangs on the hashes of texts, on addresses or on the order of sets."""
    code = f"from tests.testing.test_simulator import story\nprint(*(story(*each) for each in {REPLAYED}))"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [story(*each) for each in REPLAYED]


def test_another_seed_is_another_history() -> None:
    assert story(0, "quiet") != story(1, "quiet")


def test_a_history_without_faults_has_none_and_a_timeline_only_on_request() -> None:
    outcome = play(*QUIET)
    assert (outcome.failed, sum(outcome.faults.values()), outcome.timeline) == (False, 0, [])
    assert outcome.events > 0


# ------------------------------------------------------------------------------------------------------------ counting


def quiet(*, sqlite: bool = False) -> Simulation:
    return Simulation(0, plan=replace(plan_of(0, PROFILES["quiet"]), sqlite=sqlite))


def fourth(disk: Disk) -> Key:
    """Of the events in its log."""
    return [event.key for _, event in disk.rows(0)][3]


@pytest.mark.parametrize("sqlite", [False, True], ids=["memory", "sqlite"])
def test_a_row_that_is_missing_is_one_lost_event(sqlite: bool) -> None:
    """Counted from each store's own log against the input, not from what the node believes."""
    simulation = quiet(sqlite=sqlite)

    def take_one_out() -> None:
        disk = simulation.machines[0].disk
        disk.delete(fourth(disk))

    simulation.settled = take_one_out
    outcome = simulation.run()
    assert outcome.counts["lost"] == 1
    assert outcome.counts["duplicated"] == 0


def test_a_row_that_stands_twice_is_one_duplicate() -> None:
    simulation = quiet()

    def put_one_in_again() -> None:
        disk = simulation.machines[0].disk
        assert isinstance(disk, InMemory)
        disk.repeat(fourth(disk))

    simulation.settled = put_one_in_again
    outcome = simulation.run()
    assert outcome.counts["duplicated"] == 1
    assert outcome.counts["lost"] == 0


def test_an_effect_that_came_twice_is_one_duplicate() -> None:
    simulation = quiet()

    def apply_one_again() -> None:
        disk = simulation.machines[0].disk
        assert isinstance(disk, InMemory)
        disk.disk.models.execute("UPDATE effects SET times = 2 WHERE id = (SELECT min(id) FROM effects)")

    simulation.settled = apply_one_again
    outcome = simulation.run()
    assert dict(+outcome.counts) == {"duplicated": 1}


def test_the_sum_names_what_failed() -> None:
    tally = Tally()
    tally.add(Outcome(3, "quiet", events=5))
    tally.add(Outcome(4, "silent", events=7, reasons=["lost: x"]))
    tally.failing[0].counts["lost"] += 1
    tally.add(Outcome(4, "faults", events=1, reasons=["raised: y"]))
    assert tally.as_json() == {
        "seeds": 2,
        "faults": list(FAULTS),
        "events": 13,
        **dict.fromkeys(("lost", "duplicated", "diverged", "causal_violations", "phantom", "stuck"), 0),
        "failing_seeds": [4],
    }


# ------------------------------------------------------------------------------------------------------------ profiles


@pytest.mark.parametrize(("first", "count"), [(0, 1), (20, 3), (0, 300)])
def test_every_profile_is_in_every_run(first: int, count: int) -> None:
    histories = histories_of(range(first, first + count))
    assert {profile for _, profile in histories} == set(PROFILES)
    assert {seed for seed, _ in histories} == set(range(first, first + count))
    assert len(set(histories)) == len(histories)


def test_one_profile_may_be_chosen() -> None:
    outcomes = list(play_many(range(2), "rotation", jobs=1))
    assert [(outcome.seed, outcome.profile) for outcome in outcomes] == [(0, "rotation"), (1, "rotation")]


def test_every_fault_is_drawn_and_can_strike() -> None:
    """Sixteen names, and each of them is something that breaks."""
    simulation = Simulation(1, PROFILES["faults"])
    breakage = Breakage(simulation, simulation._dice)
    assert len(FAULTS) == 16
    assert set(breakage._faults) == set(FAULTS)
    drawn = {fault for seed in range(20) for fault in plan_of(seed, PROFILES["faults"]).faults}
    assert drawn == set(FAULTS)


def test_a_reader_slower_than_the_writers_is_not_fed_again() -> None:
    """Five nodes write 125 events a second through one partition of a reader that takes 160."""
    profile = PROFILES["overload"]
    outcome = play(4, "overload")
    assert outcome.reasons == []
    assert outcome.events >= 125 * profile.write_s
    assert outcome.published <= 1.15 * outcome.events
    plan = plan_of(4, profile)
    assert (plan.nodes, plan.partitions, profile.rate) == (5, 1, 160)


# ------------------------------------------------------------------------------------------------------- what may raise


def test_a_history_that_raises_is_a_failed_seed() -> None:
    async def script(scene: Scene) -> None:
        await scene.write(scene["n1"])
        raise LookupError("nobody expected this")

    outcome = Scene("raises", script, nodes=1, digests=False).run()
    assert outcome.failed
    (reason,) = outcome.reasons
    assert reason.startswith("raised: LookupError('nobody expected this') in script (test_simulator.py:")


def test_nobody_answers_for_a_machine_that_is_down() -> None:
    """A user who writes to a node that has just died gets no answer; the history goes on."""
    answers: list[object] = []

    async def script(scene: Scene) -> None:
        machine = scene["n1"]
        await scene.write(machine)
        machine.kill()
        answers.append(await machine.run(lambda node: node.digest("orders")))
        await machine.bury()
        answers.append(await machine.run(lambda node: node.digest("orders")))
        await machine.start()
        answers.append(await machine.run(lambda node: node.digest("orders")))

    outcome = Scene("down", script, nodes=1, digests=False).run()
    assert outcome.reasons == []
    assert [type(answer) for answer in answers] == [type(None), type(None), str]


def test_a_history_in_which_nobody_can_go_on_is_stuck() -> None:
    async def script(scene: Scene) -> None:
        await asyncio.get_running_loop().create_future()

    outcome = Scene("waits", script, nodes=1, digests=False).run()
    assert outcome.counts["stuck"] == 1


# -------------------------------------------------------------------------------------------------------- planted bugs


def test_there_are_enough_bugs_and_each_has_a_name_and_a_reason() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 16
    assert all(bug.why and bug.edits for bug in BUGS)
    assert {bug.scene for bug in BUGS if bug.scene} == set(SCENES)
    assert {bug.profile for bug in BUGS if bug.profile} <= set(PROFILES)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_a_change_to_the_present_code(bug: Planted) -> None:
    for module, source in sources(bug.edits).items():
        compile(source, module, "exec")
    assert diff_of(bug).startswith("--- a/synckit_streams/")


def test_a_change_whose_place_is_gone_is_refused() -> None:
    edit = Edit("synckit_streams.sync.ledger", "this was never there", "")
    with pytest.raises(Stale, match="stands 0 times"), changed([edit]):
        pass


def test_what_was_changed_is_put_back() -> None:
    before = {name: id(module) for name, module in sys.modules.items() if name.startswith("synckit_streams")}
    with changed(bug_named("no-hold").edits):
        import synckit_streams.sync.arrivals as planted

        assert id(planted) != before["synckit_streams.sync.arrivals"]
    after = {name: id(module) for name, module in sys.modules.items() if name.startswith("synckit_streams")}
    assert after == before


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_passes_on_the_code_as_it_is(name: str) -> None:
    assert play_scene(name).reasons == []


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.scene], ids=lambda bug: bug.name)
def test_a_scene_finds_the_bug_that_it_is_for(bug: Planted) -> None:
    caught = hunt(bug.name)
    assert (caught.by, caught.seeds) == (f"scene {bug.scene}", 0)


def test_the_seeds_that_find_bugs_pass_on_the_code_as_it_is() -> None:
    """Otherwise they would find everything."""
    histories = {(bug.sooner, bug.profile) for bug in BUGS if not bug.scene and bug.profile != "overload"}
    assert {each: reasons for each in sorted(histories) if (reasons := play(*each).reasons)} == {}


def test_a_bug_is_found_without_what_is_known_of_it() -> None:
    caught = hunt("no-hold", seeds=20, first_seed=100)
    assert caught.by.startswith("seed 1")
    assert caught.reasons


def test_a_bug_that_is_not_found_is_missed() -> None:
    """In one quiet history no disk fails."""
    caught = hunt("mirror-ahead-of-disk", seeds=1, first_seed=0)
    assert (caught.by, caught.seeds, caught.as_json()["caught"]) == ("", 1, False)


def test_a_bug_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="no planted bug 'nonsense'") as raised:
        bug_named("nonsense")
    assert all(bug.name in raised.value.hint for bug in BUGS)
