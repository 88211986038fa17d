"""`synckit simulate`: its last lines, its status, and what it shows of a planted bug."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from synckit_streams.testing.simulator import BUGS, FAULTS
from tests.cli.conftest import Command, Process

KINDS = ("lost", "duplicated", "diverged", "causal_violations", "phantom", "stuck")


def test_the_last_line_is_the_verdict(synckit: Command) -> None:
    done = synckit("simulate", "--seeds", 2, "--profile", "rotation", "--jobs", 1, "--json")
    assert (done.status, done.err) == (0, "")
    events = done.json["events"]
    assert events > 20
    said = {"seeds": 2, "faults": list(FAULTS), "events": events, **dict.fromkeys(KINDS, 0), "failing_seeds": []}
    assert done.out == json.dumps(said, separators=(",", ":"), ensure_ascii=False) + "\n"


def test_people_get_a_sentence(synckit: Command) -> None:
    done = synckit("simulate", "--seeds", 1, "--profile", "rotation", "--jobs", 1)
    assert done.status == 0
    assert done.out.startswith("1 history, ")
    assert done.out.endswith("none failed\n")
    assert done.err == ""


def test_a_few_seeds_over_two_processes_play_every_profile(synckit: Command) -> None:
    done = synckit("simulate", "--seeds", 2, "--first-seed", 2, "--jobs", 2)
    assert done.status == 0
    assert done.out.startswith("7 histories, ")


def test_one_seed_is_shown_as_a_timeline(synckit: Command) -> None:
    done = synckit("simulate", "--seed", 3, "--profile", "rotation", "--trace")
    assert done.status == 0
    *timeline, verdict = done.out.splitlines()
    assert timeline[0].startswith("    0.000  plan")
    assert any("writes n1-1 to a" in line for line in timeline)
    assert verdict.startswith("1 history")
    told = synckit("simulate", "--seed", 3, "--profile", "rotation", "--trace", "--json").lines
    assert told[0]["timeline"] == timeline
    assert told[-1]["seeds"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "stormy"), "there is no profile 'stormy'"),
        (("--trace",), "--trace shows one history"),
        (("--show",), "--show shows a planted bug"),
        (("--planted", "all", "--show"), "--show shows one bug"),
        (("--planted", "nonsense"), "there is no planted bug 'nonsense'"),
        (("--planted", "no-hold", "--profile", "quiet"), "--profile has no meaning with --planted"),
        (("--planted", "no-hold", "--trace"), "--trace has no meaning with --planted"),
        (("--seed", "3", "--seeds", "4"), "--seeds has no meaning with --seed"),
    ],
)
def test_a_call_without_a_meaning_is_refused(synckit: Command, arguments: tuple[str, ...], message: str) -> None:
    done = synckit("simulate", *arguments, "--json")
    assert (done.status, done.out) == (1, "")
    assert message in done.error["message"]
    assert done.error["hint"]


def test_a_planted_bug_that_is_found(synckit: Command) -> None:
    done = synckit("simulate", "--planted", "no-prev", "--json")
    assert (done.status, done.err) == (0, "")
    line, last = done.lines
    assert (line["bug"], line["caught"], line["by"]) == ("no-prev", True, "scene stale-read-overtakes")
    assert line["reason"].startswith("causal_violations: ")
    assert last == {"planted": 1, "caught": 1, "missed": []}
    said = synckit("simulate", "--planted", "no-prev").out
    assert said.startswith("✓  no-prev ")
    assert said.endswith("1 planted bug: all found\n")


def test_a_planted_bug_that_is_missed_is_a_failure(synckit: Command) -> None:
    missed = ("simulate", "--planted", "mirror-ahead-of-disk", "--first-seed", 0, "--seeds", 1)
    done = synckit(*missed, "--json")
    assert done.status == 1
    assert done.json == {"planted": 1, "caught": 0, "missed": ["mirror-ahead-of-disk"]}
    assert "missed in 1 seed" in synckit(*missed).out


def test_a_planted_bug_is_shown_as_a_change(synckit: Command) -> None:
    done = synckit("simulate", "--planted", "no-hold", "--show")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[:2] == ["--- a/synckit_streams/sync/arrivals.py", "+++ b/synckit_streams/sync/arrivals.py"]
    assert "-        if cause is not None:" in lines
    assert synckit("simulate", "--planted", "no-hold", "--show", "--json").json["diff"] == done.out


def test_a_bug_that_there_is_not_is_answered_with_those_that_there_are(synckit: Command) -> None:
    done = synckit("simulate", "--planted", "nonsense")
    assert done.status == 1
    assert all(bug.name in done.err.replace("\n", "") for bug in BUGS)


def worked_s(pid: int) -> float:
    """The processor's time that a process and its children have had, in seconds."""
    seconds = 0.0
    for found in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            number, _, rest = found.read_text().partition(" (")
            _, parent, *more = rest.rpartition(") ")[2].split()
            if pid in (int(number), int(parent)):
                seconds += (int(more[9]) + int(more[10])) / os.sysconf("SC_CLK_TCK")
    return seconds


@pytest.mark.parametrize("arguments", [("--seeds", 3000), ("--planted", "all"), ("--seeds", 3000, "--jobs", 1)])
def test_interrupting_it_is_quiet(process: Callable[..., Process], arguments: tuple[object, ...]) -> None:
    running = process("simulate", "--json", *arguments)
    deadline = time.monotonic() + 60
    while worked_s(running.popen.pid) < 2.0:  # it takes half a second to start, and seconds more to come to an end
        assert running.popen.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = running.end(signal.SIGINT, timeout_s=10)
    assert done.status == 130
    assert done.err == ""
