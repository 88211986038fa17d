"""A server for tests is the real program, keeps its data over a restart, and never outlives who started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nats
import nats.errors
import pytest
import redis

from synckit_streams.errors import ConfigError, ConnectorError, MissingDependency
from synckit_streams.testing.brokers import NatsServer, RedisServer, find_binary, find_redis


async def publish(url: str, texts: list[str]) -> None:
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name="orders", subjects=["orders"])
        for text in texts:
            await stream.publish("orders", text.encode())
    finally:
        await connection.close()


async def stored(url: str) -> list[str]:
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        count = (await stream.stream_info("orders")).state.messages
        return [((await stream.get_msg("orders", seq)).data or b"").decode() for seq in range(1, count + 1)]
    finally:
        await connection.close()


def alive(pid: int) -> bool:
    """Whether the process is there; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(true: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill])
async def test_what_was_acknowledged_is_there_after_a_restart(
    nats_server: NatsServer, end: Callable[[NatsServer], None]
) -> None:
    """Stop and kill keep the data; restart comes back under the same URL."""
    url, first = nats_server.url, nats_server.pid
    await publish(url, ["a", "b", "c"])
    end(nats_server)
    assert not nats_server.running
    assert nats_server.pid is None
    nats_server.restart()
    assert nats_server.url == url
    assert nats_server.pid != first
    assert await stored(url) == ["a", "b", "c"]


async def test_a_restart_ends_the_running_server_first(nats_server: NatsServer) -> None:
    before = nats_server.pid
    assert before is not None
    await publish(nats_server.url, ["a"])
    nats_server.restart()
    assert not alive(before)
    assert await stored(nats_server.url) == ["a"]


def test_a_stopped_server_is_gone_and_stopping_twice_is_no_error(nats_server: NatsServer) -> None:
    pid = nats_server.pid
    assert pid is not None
    assert alive(pid)
    nats_server.stop()
    assert not alive(pid)
    nats_server.stop()
    nats_server.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", nats_server.port), timeout=5)


def test_starting_a_running_server_changes_nothing(nats_server: NatsServer) -> None:
    pid = nats_server.pid
    nats_server.start()
    assert nats_server.pid == pid


def test_a_server_that_died_by_itself_is_seen_as_down_and_comes_back(nats_server: NatsServer) -> None:
    pid = nats_server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not nats_server.running)
    nats_server.restart()
    assert nats_server.running
    assert nats_server.pid != pid


def test_a_frozen_server_answers_when_it_is_frozen_no_more(redis_server: RedisServer) -> None:
    """It takes a connection and says nothing; what it was asked meanwhile it answers then, and it can be ended."""
    with redis.Redis.from_url(redis_server.url, socket_timeout=0.2) as client:
        with redis_server.frozen(), pytest.raises(redis.TimeoutError):
            client.ping()
        assert client.ping()
        with redis_server.frozen():
            pass
        redis_server.kill()
        with pytest.raises(ConnectorError, match="is down"), redis_server.frozen():
            pass


async def test_servers_are_apart(nats_server: NatsServer, nats_url: str) -> None:
    """Own port, own streams, also beside the shared one."""
    with NatsServer() as other:
        assert len({nats_server.url, nats_url, other.url}) == 3
        await publish(nats_server.url, ["a"])
        await publish(other.url, ["b"])
        assert await stored(nats_server.url) == ["a"]


def test_a_directory_nobody_chose_is_removed() -> None:
    with NatsServer() as server:
        assert server.store_dir.is_dir()
    assert not server.directory.exists()


def test_a_chosen_directory_stays(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "chosen") as server:
        assert server.store_dir.is_dir()
    assert server.store_dir.is_dir()


async def test_a_payload_limit_is_the_servers(tmp_path: Path) -> None:
    """One byte over it is refused, the limit itself is not."""
    with NatsServer(tmp_path, max_payload=2_000, sync_always=True) as server:
        connection = await nats.connect(server.url)
        assert connection.max_payload == 2_000
        stream = connection.jetstream()
        await stream.add_stream(name="orders", subjects=["orders"])
        await stream.publish("orders", bytes(2_000))
        with pytest.raises(nats.errors.MaxPayloadError):
            await connection.publish("orders", bytes(2_001))
        await connection.close()


def test_a_configuration_that_the_server_refuses_is_told_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match="not_an_option"):
        NatsServer(tmp_path, config="not_an_option: 1").start(timeout_s=10)


def test_a_port_that_is_taken_is_an_error_if_it_was_chosen(nats_server: NatsServer, tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match="address already in use"):
        NatsServer(tmp_path, port=nats_server.port).start(timeout_s=10)


def test_a_port_that_is_taken_is_passed_over_if_none_was_chosen(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of 20 draws 19 hit the other server's port, in any order."""
    with NatsServer(tmp_path / "probe") as probe:
        free = probe.port

    class Crowded(NatsServer):
        ports = (nats_server.port,) * 19 + (free,)

    with Crowded(tmp_path / "server") as server:
        assert server.port == free
        assert nats_server.running


# One program that starts a server, says its pid and waits; a thread starts it and ends, which must not matter.
PARENT = """
import sys, threading, time
from synckit_streams.testing.brokers import NatsServer
from pathlib import Path
server = NatsServer(Path(sys.argv[1]))
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_dies_with_a_killed_parent(tmp_path: Path, sent: signal.Signals) -> None:
    """kill -9 leaves the parent no chance to clean up, and yet nothing stays behind."""
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        assert alive(pid), "the thread that started the server has ended; the server must not have"
        parent.send_signal(sent)
        parent.wait()
        assert eventually(lambda: not alive(pid))


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_program_is_looked_for_in_the_variable_then_beside_python_then_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = executable(tmp_path / "named" / "any-name")
    beside = executable(tmp_path / "venv" / "bin" / "some-server")
    on_path = executable(tmp_path / "path" / "some-server")
    monkeypatch.setenv("SOME_SERVER", str(named))
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setattr(sys, "executable", str(beside.parent / "python"))
    assert find_binary("some-server", "SOME_SERVER") == named
    monkeypatch.delenv("SOME_SERVER")
    assert find_binary("some-server", "SOME_SERVER") == beside
    beside.unlink()
    assert find_binary("some-server", "SOME_SERVER") == on_path
    on_path.unlink()
    assert find_binary("some-server", "SOME_SERVER") is None


def test_a_variable_that_names_no_program_is_an_error_not_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCKIT_NATS_SERVER", "/nowhere/nats-server")
    with pytest.raises(ConfigError, match="SYNCKIT_NATS_SERVER=/nowhere/nats-server"):
        NatsServer()


def test_a_missing_server_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNCKIT_NATS_SERVER", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MissingDependency, match=r"pip install 'synckit-streams\[embedded\]'"):
        NatsServer()


@pytest.mark.parametrize(("require", "outcome"), [("", "skipped"), ("all", "errors")])
def test_a_test_without_its_server_is_skipped_by_name_or_fails(tmp_path: Path, require: str, outcome: str) -> None:
    """SYNCKIT_TEST_REQUIRE=all turns the skip into a failure: there a green run means that everything ran."""
    (tmp_path / "test_one.py").write_text(
        "import os, sys\n"
        "sys.executable, os.environ['PATH'] = '/nowhere/python', '/nowhere'\n"
        "def test_one(nats_url): pass\n"
        "def test_two(nats_server): pass\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SYNCKIT_", "PYTEST_"))}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env=environment | {"SYNCKIT_TEST_REQUIRE": require},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"2 {outcome}" in run.stdout, run.stdout
    if require:
        assert "there is no nats-server on this machine" in run.stdout


def test_a_named_server_is_taken_before_a_local_one(nats_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(f"def test_one(nats_url): assert nats_url == {nats_server.url!r}\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env=os.environ | {"SYNCKIT_TEST_NATS_URL": nats_server.url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in run.stdout, run.stdout


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
def test_a_redis_server_comes_back_on_its_port_with_its_data(
    tmp_path: Path, end: Callable[[RedisServer], None]
) -> None:
    """Redis or Valkey, with a password, a file of appended commands, and settings of one's own."""
    with RedisServer(tmp_path, password='p w"x', options={"databases": "3"}) as server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "yes")
        assert [
            value.decode() if isinstance(value, bytes) else value for value in client.config_get("databases").values()
        ] == ["3"]
        client.close()
        before = server.url
        end(server)
        assert not server.running
        server.restart()
        assert server.url == before
        client = redis.Redis.from_url(server.url)
        assert client.get("kept") == b"yes"
        client.close()
    assert not server.running


def test_a_redis_server_is_found_in_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no other one is, the one that `embedded` brings."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    found = find_redis()
    assert found is not None
    assert found.name == "valkey-server"
