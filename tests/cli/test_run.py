"""`synckit run` as processes: what becomes of workers that are ended, killed, hang or crash."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cli.runs import PATIENCE_S, Run, dead

Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("steady", "--workers", "2")`; nothing outlives the test."""
    started: list[Run] = []

    def run(service: str, *options: str, terminal: int | None = None) -> Run:
        target = service if ":" in service else f"tests.cli.services:{service}"
        options = options if "--no-http" in options or "--port" in options else ("--port", "0", *options)
        started.append(Run(tmp_path, target, *options, terminal=terminal))
        return started[-1]

    yield run
    for each in started:
        each.process.kill()
        each.process.wait()
        for pid in each.pids(""):
            each.until("every worker is gone", partial(dead, pid))


EACH_WAY = pytest.mark.parametrize("workers", [1, 2], ids=["alone", "two workers"])


def of(workers: int) -> tuple[str, str]:
    return "--workers", str(workers)


# ------------------------------------------------------------------------------------------------------------ it ends


@EACH_WAY
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_works_until_it_is_told_to_end(start: Start, workers: int, by: signal.Signals) -> None:
    """Ctrl-C goes to all processes of a terminal: it is one request to end all the same."""
    run = start("steady", *of(workers), "--drain-s", "7")
    run.until_said("is ready", workers)
    os.killpg(run.process.pid, by) if by is signal.SIGINT else run.send(by)
    assert run.end() == 0
    if workers == 1:
        assert "has ended" in run.said
    assert run.journal == ["started"] * workers + ["stopped with 7 s"] * workers
    assert "Traceback" not in run.said
    assert "\x1b" not in run.said


@EACH_WAY
def test_what_is_under_way_is_finished(start: Start, workers: int) -> None:
    """Meanwhile it lives, and is not ready."""
    run = start("slow", *of(workers))
    run.until_said("is ready", workers)
    run.send(signal.SIGTERM)
    run.until("all drain", lambda: run.journal.count("drains") == workers)
    assert run.health("/health/ready")[0] == 503
    assert run.health("/health/live")[0] == 200
    assert run.process.poll() is None
    (run.directory / "enough").touch()
    assert run.end() == 0
    assert run.journal.count("finished") == workers


@EACH_WAY
def test_who_does_not_end_is_ended_at_the_deadline(start: Start, workers: int) -> None:
    """Also when its event loop hangs."""
    run = start("stubborn", *of(workers), "--drain-s", "0.3")
    run.until_said("is ready", workers)
    began = time.monotonic()
    assert run.end(signal.SIGTERM) == 1
    assert time.monotonic() - began < 15
    assert "did not end within" in run.said


def test_who_cannot_even_hear_is_killed_at_the_deadline(start: Start) -> None:
    run = start("blocked", *of(2), "--drain-s", "0.3")
    run.until_said("is ready", 2)
    run.until("they hang", lambda: run.health("/health/ready")[0] == 503)
    assert run.end(signal.SIGTERM) == 1
    assert run.said.count("and is killed") == 2
    assert "stopped" not in str(run.journal)


@EACH_WAY
def test_who_fails_and_does_not_end_is_ended_too(start: Start, workers: int) -> None:
    """Nobody told it to end, so nobody else would look at the clock."""
    run = start("stuck", *of(workers), "--drain-s", "0.2")
    run.until_said("is ready", workers)
    (run.directory / "fail").touch()
    run.until_said("is cut off", workers)
    if workers == 1:
        assert run.end() == 1
    else:
        run.until_said("ended with status 1", workers)
        (run.directory / "fail").unlink()


@EACH_WAY
def test_a_second_ctrl_c_cuts_it_short(start: Start, workers: int) -> None:
    run = start("slow", *of(workers), "--drain-s", "600")
    run.until_said("is ready", workers)
    run.send(signal.SIGINT)
    run.until("all drain", lambda: run.journal.count("drains") == workers)
    assert run.end(signal.SIGINT) == 130
    assert "finished" not in run.journal


@EACH_WAY
def test_it_ends_when_its_terminal_is_closed(start: Start, workers: int) -> None:
    """Which comes as SIGHUP, as the request to start anew does."""
    ours, theirs = pty.openpty()
    run = start("steady", *of(workers), terminal=theirs)
    os.close(theirs)
    run.until("all work", lambda: run.journal.count("started") == workers)
    run.until("it shows that", lambda: os.read(ours, 4096).count(b"worker-") and run.process.poll() is None)
    os.close(ours)
    run.process.wait(PATIENCE_S)
    assert run.journal.count("stopped with 30 s") == workers


def test_hup_ends_a_single_process(start: Start) -> None:
    run = start("steady")
    run.until_said("is ready")
    assert run.end(signal.SIGHUP) == 0
    assert run.journal == ["started", "stopped with 30 s"]


def test_workers_do_not_outlive_a_supervisor_that_is_killed(start: Start) -> None:
    """Not even one whose event loop hangs."""
    for service in ("steady", "blocked"):
        run = start(service, *of(2))
        run.until_said("is ready", 2)
        run.end(signal.SIGKILL)
        for pid in run.pids("started"):
            run.until("it is gone", partial(dead, pid))


# ----------------------------------------------------------------------------------------------------- it is kept going


def test_a_worker_that_is_killed_is_replaced(start: Start) -> None:
    """And is known by its old number: no series ends, and no new one begins."""
    run = start("steady", *of(2))
    run.until_said("is ready", 2)
    assert run.metric("service_starts_total") == {"1": 1.0, "2": 1.0}
    os.kill(run.pids("started")[1], signal.SIGKILL)
    run.until_said("worker-2 is ready", 2)
    assert "worker-2 was killed by SIGKILL; the next one is started in" in run.said
    assert run.metric("synckit_worker_up") == {"1": 1.0, "2": 1.0}
    assert run.metric("synckit_worker_restarts_total") == {"1": 0.0, "2": 1.0}
    assert run.metric("service_starts_total") == {"1": 1.0, "2": 1.0}
    assert run.end(signal.SIGTERM) == 0


def test_a_worker_that_somebody_ends_finishes_and_is_replaced(start: Start) -> None:
    run = start("steady", *of(2))
    run.until_said("is ready", 2)
    os.kill(run.pids("started")[0], signal.SIGTERM)
    run.until_said("worker-1 is ready", 2)
    assert run.journal.count("stopped with 30 s") == 1


def test_a_service_that_fails_is_drained_and_started_again(start: Start) -> None:
    run = start("failing", *of(2))
    run.until_said("is ready", 2)
    (run.directory / "fail").touch()
    run.until("both drained", lambda: run.journal.count("stopped with 30 s") >= 2)
    (run.directory / "fail").unlink()
    run.until("both work again", lambda: run.metric("synckit_worker_up") == {"1": 1.0, "2": 1.0})
    assert "[SK401] the store is gone" in run.said


def test_a_service_that_fails_alone_ends_with_its_error(start: Start) -> None:
    """Whoever started it starts it again."""
    run = start("failing")
    run.until_said("is ready")
    (run.directory / "fail").touch()
    assert run.end() == 1
    assert "error SK401  the store is gone" in run.said
    assert run.journal == ["started", "stopped with 30 s"]


def test_a_crash_loop_slows_down_and_is_told(start: Start) -> None:
    """The first worker is tried alone, and the pauses between the tries grow."""
    began = time.monotonic()
    run = start("crashing", *of(2))
    run.until_said("crash loop")
    took = time.monotonic() - began
    pauses = [float(each) for each in re.findall(r"started in (\d+\.\d) s", run.said)]
    assert len(pauses) == 5
    assert took > sum(pauses[:-1]) - 0.2, "the pauses are told, and not kept"
    assert all(pause <= 0.5 * 2**number + 0.05 for number, pause in enumerate(pauses))
    assert "[SK401] no way to the broker" in run.said
    assert "worker-2" not in run.said
    status, body = run.health()
    assert status == 503
    assert "5 times in a row" in body["results"]["worker-1/process"]["message"]
    assert run.end(signal.SIGTERM) == 0


def test_hup_starts_the_workers_anew_one_after_another(start: Start) -> None:
    """There is always one that works."""
    run = start("steady", *of(2))
    run.until_said("is ready", 2)
    run.send(signal.SIGHUP)
    run.until_said("all workers have been restarted")
    assert run.journal == ["started", "started", *(["stopped with 30 s", "started"] * 2)]
    first, second, third, fourth = run.pids("started")
    assert len({first, second, third, fourth}) == 4
    assert run.pids("stopped") == [first, second]
    assert run.end(signal.SIGTERM) == 0


def test_hup_with_a_program_that_does_not_start_ends_no_more_than_one_worker(start: Start, tmp_path: Path) -> None:
    """The others go on with the old one; when the new one is put right, it comes by itself."""
    module = tmp_path / "upgraded.py"
    module.write_text("from tests.cli.services import steady as app\n")
    run = start("upgraded:app", *of(2))
    run.until_said("is ready", 2)
    module.write_text("raise ValueError('no such setting')\n")
    run.send(signal.SIGHUP)
    run.until_said("worker-1 did not become ready again")
    assert "ValueError: no such setting" in run.said
    status, body = run.health("/health/ready")
    assert (status, body["status"]) == (200, "degraded")
    assert not dead(run.pids("started")[1])
    module.write_text("from tests.cli.services import steady as app\n")
    run.until("all is well", lambda: run.health()[1]["status"] == "up")
    assert run.end(signal.SIGTERM) == 0


# ------------------------------------------------------------------------------------------------------------- it shows


@EACH_WAY
def test_a_broker_that_is_away_degrades_and_a_store_that_is_broken_is_down(start: Start, workers: int) -> None:
    run = start("steady", *of(workers))
    run.until_said("is ready", workers)
    assert run.health()[1]["status"] == "up"
    checks = run.directory / "checks"
    checks.write_text(json.dumps([["store", True], ["nats://broker", False, False, "connection refused"]]))
    status, body = run.health("/health/ready")
    assert (status, body["status"]) == (200, "degraded")
    away = [each for name, each in body["results"].items() if name.endswith("nats://broker")]
    assert [each["message"] for each in away] == ["connection refused"] * workers
    checks.write_text(json.dumps([["store", False, True, "no room"]]))
    status, body = run.health("/health/ready")
    assert (status, body["status"]) == (503, "down")
    assert run.health("/health/live")[0] == 200
    checks.write_text("no JSON")
    status, body = run.health()
    assert (status, body["status"]) == (503, "down")


def test_a_worker_that_hangs_is_down_and_the_rest_is_told(start: Start) -> None:
    run = start("blocked", *of(2))
    run.until_said("is ready", 2)
    status, body = run.until("it hangs", lambda: run.health() if run.health()[0] == 503 else None)
    assert (status, body["status"]) == (503, "down")
    assert "no answer within" in body["results"]["worker-1"]["message"]
    assert run.metric("synckit_worker_up") == {"1": 1.0, "2": 1.0}


def test_one_of_two_workers_that_is_away_degrades(start: Start, tmp_path: Path) -> None:
    """Until it is back; the other one does the work meanwhile."""
    (tmp_path / "half.py").write_text(
        "import os\nfrom pathlib import Path\nfrom tests.cli.services import Steady\n"
        "class Half(Steady):\n"
        "    async def start(self):\n"
        "        if Path('full').exists():\n"
        "            os._exit(7)\n"
        "        await super().start()\n"
        "app = Half('half')\n"
    )
    run = start("half:app", *of(2))
    run.until_said("is ready", 2)
    (tmp_path / "full").touch()
    os.kill(run.pids("started")[1], signal.SIGKILL)
    run.until_said("worker-2 ended with status 7")
    status, body = run.health("/health/ready")
    assert (status, body["status"]) == (200, "degraded")
    assert body["results"]["worker-2/process"]["status"] == "degraded"
    assert run.metric("synckit_worker_up") == {"1": 1.0, "2": 0.0}
    (tmp_path / "full").unlink()
    run.until("it is back", lambda: run.health()[1]["status"] == "up")


@EACH_WAY
def test_logs_say_which_worker_and_may_be_json(start: Start, workers: int) -> None:
    run = start("steady", *of(workers), "--json")
    run.until_said("is ready", workers)
    assert run.end(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in run.said.splitlines()]
    assert {each["worker"] for each in lines} <= {"supervisor", "worker-1", "worker-2"}
    assert [each["level"] for each in lines] == ["info"] * len(lines)


# -------------------------------------------------------------------------------------------------- what is set wrongly


def test_a_port_that_is_taken_is_said_before_anything_is_started(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for workers in (1, 2):
            run = start("steady", *of(workers), "--port", str(port))
            assert run.end() == 2
            assert f"port {port} of 127.0.0.1 is taken" in run.said
            assert run.journal == []


def test_several_workers_want_a_store_that_can_be_shared(start: Start) -> None:
    """It is said once, however many there were to be."""
    run = start("alone", *of(3))
    assert run.end() == 2
    assert run.said.count("belongs to one process at a time") == 1
    assert "postgresql://" in run.said
    assert run.journal == []
    run = start("alone")
    run.until_said("is ready")
    assert run.end(signal.SIGTERM) == 0


@EACH_WAY
def test_a_target_that_is_none_ends_it_with_status_2(start: Start, workers: int) -> None:
    run = start("tests.cli.services:stedy", *of(workers))
    assert run.end() == 2
    assert "has no 'stedy'" in run.said
    assert "steady" in run.said
    assert start("nothing").end() == 2


def test_a_module_may_run_a_loop_of_its_own_while_it_is_imported(start: Start, tmp_path: Path) -> None:
    (tmp_path / "looping.py").write_text(
        "import asyncio\nfrom tests.cli.services import steady as app\nasyncio.run(asyncio.sleep(0))\n"
    )
    run = start("looping:app")
    run.until_said("is ready")
    assert run.end(signal.SIGTERM) == 0


def test_without_the_extra_it_says_what_to_install_or_to_leave_out(start: Start, tmp_path: Path) -> None:
    """A uvicorn that cannot be imported stands for none."""
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('no uvicorn')\n")
    run = start("steady")
    assert run.end() == 2
    assert "pip install 'synckit-streams[http]', or --no-http" in run.said
    run = start("steady", "--no-http")
    run.until_said("is ready")
    assert run.end(signal.SIGTERM) == 0


def test_without_http_there_is_no_port(start: Start) -> None:
    run = start("steady", "--no-http")
    run.until_said("is ready")
    assert "http://" not in run.said
    assert run.end(signal.SIGTERM) == 0


# ---------------------------------------------------------------------------------------------------------- it reloads


def test_a_changed_file_is_read_and_a_wrong_one_waited_for(start: Start, tmp_path: Path) -> None:
    """A syntax error is told once; the next change is taken."""
    module = tmp_path / "edited.py"

    def write(name: str) -> None:
        lines = ["from tests.cli.services import Steady, note", f"note('I am {name}')", f"app = Steady('{name}')"]
        module.write_text("\n".join(lines) + "\n")

    write("first")
    run = start("edited:app", "--reload")
    run.until_said("is ready")
    write("the second")
    run.until_said("changed: edited.py")
    run.until_said("is ready", 2)
    assert run.journal == ["I am first", "started", "stopped with 30 s", "I am the second", "started"]
    module.write_text("def app(:\n")
    run.until_said("waiting until a file changes")
    assert 'edited.py", line 1' in run.said
    assert "SyntaxError" in run.said
    write("a third one")
    run.until_said("is ready", 3)
    assert run.journal[-2:] == ["I am a third one", "started"]
    assert run.end(signal.SIGTERM) == 0
